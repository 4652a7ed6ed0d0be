"""Prompts in, completions out, by transformers' `generate`: what evaluation and sampling share.

- `complete`: one completion for each prompt of a batch
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Completion:
    """What the model wrote."""

    text: str  # without special tokens, as the trainers decode
    ids: list[int]  # end of text included
    truncated: bool  # cut off before the model ended it


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
) -> list[Completion]:
    """Complete a batch of prompts, in evaluation mode.

    Args:
        model: any causal language model.
        tokenizer: its tokenizer.
        prompts: texts, or lists of chat messages.
        max_new_tokens: where a completion is cut off.
        temperature: 0 is greedy. Sampling draws from torch's global generator: seed it for a repeatable result.
        top_p: the smallest set of tokens with this much probability is sampled from; 1 is all.
        top_k: so many of the likeliest tokens are sampled from; 0 is all.
    """
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if temperature else {}
    decoding = {"do_sample": bool(temperature), "temperature": None, "top_p": None, "top_k": None} | sampling
    stops = model.generation_config.eos_token_id
    stops = torch.tensor(tokenizer.eos_token_id if stops is None else stops, device=model.device).reshape(-1)
    batch = _tokenize(tokenizer, prompts).to(model.device)
    was_training = model.training
    model.eval()
    output = model.generate(
        **batch, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, use_cache=True, **decoding
    )
    model.train(was_training)
    ids_BT = output[:, batch["input_ids"].shape[1] :]
    stopped_BT = torch.isin(ids_BT, stops)
    # Tokens up to the first stop, the stop included; padding follows it.
    lengths = (stopped_BT.cumsum(1) - stopped_BT.long() == 0).sum(1).tolist()
    ids = [row[:length] for row, length in zip(ids_BT.tolist(), lengths, strict=True)]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    is_truncated = (~stopped_BT.any(1)).tolist()
    return [Completion(*parts) for parts in zip(texts, ids, is_truncated, strict=True)]


def _tokenize(tokenizer, prompts):
    if isinstance(prompts[0], str):
        return tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    texts = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in prompts]
    return tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
