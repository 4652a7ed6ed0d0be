"""Perplexity: how surprised a model is by a text, per token."""

import math

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    max_length: int,
    batch_size: int = 16,
) -> float:
    """exp of the mean negative log-likelihood of a token, given those before it in its document, end of text included.

    Two models compare only if they share a tokenizer.

    Args:
        model: any causal language model; left in the mode (training or not) that it came in.
        tokenizer: its tokenizer.
        texts: one document each.
        max_length: tokens of a document that count; what comes after them is left out.
        batch_size: documents a batch.

    Raises:
        ValueError: no document has two tokens.
    """
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    texts = sorted(texts, key=len)  # little padding
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(
            [text + tokenizer.eos_token for text in texts[start : start + batch_size]],
            return_tensors="pt",
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=max_length,
        ).to(model.device)
        ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, :-1].float()
        loss_N = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")
        counted_N = mask_BT[:, 1:].flatten()
        total += (loss_N.double() * counted_N).sum().item()
        tokens += int(counted_N.sum())
    model.train(was_training)
    if not tokens:
        raise ValueError("no document has two tokens to predict one from the other")
    return math.exp(total / tokens)
