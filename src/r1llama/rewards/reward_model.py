"""A reward model or verifier head as a reward: a sequence classifier with one output, or a class for "right".

- `ModelReward`: the reward
- `render`, `encode`: prompt and completion as the classifier reads them, also while it is trained
"""

from collections.abc import Sequence
from typing import Any

from .text import Completion, completion_text, prompt_text


def render(prompts: Sequence[Completion], completions: Sequence[Completion], tokenizer: Any) -> list[str]:
    """Each prompt and its completion as one text: chat messages through the template, texts one after the other."""
    texts = []
    for prompt, completion in zip(prompts, completions, strict=True):
        if isinstance(prompt, str) or tokenizer.chat_template is None:
            text = prompt_text(prompt) + completion_text(completion)
        else:
            messages = [*prompt, {"role": "assistant", "content": completion_text(completion)}]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        texts.append(text.encode("utf-8", "replace").decode())
    return texts


def encode(texts: list[str], tokenizer: Any, max_length: int, **keywords: Any) -> Any:
    """Token ids and mask, without a second beginning-of-text token where the text has one, as templates write it.
    Texts of more than `max_length` tokens are cut on the left: the answer is at the end."""
    side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    has_start = tokenizer.bos_token is not None and texts[0].startswith(tokenizer.bos_token)
    inputs = tokenizer(texts, add_special_tokens=not has_start, truncation=True, max_length=max_length, **keywords)
    tokenizer.truncation_side = side
    return inputs


class ModelReward:
    """Score prompt and completion with a sequence classification model.

    torch is imported at the first call only. Pickled, it carries the path and not the weights, when given a path.

    Args:
        model: a path or hub id for `AutoModelForSequenceClassification`, or a loaded model.
        tokenizer: the same for its tokenizer; None: the model's path.
        label: which output to take; with one output it is 0. With several, the log-probability's exponential of this
            class (its softmax) is the reward.
        sigmoid: squash a single output to 0..1; None: if it was trained as a probability, as the config's
            `problem_type` tells.
        batch_size, max_length: per forward pass, and tokens per text (cut on the left: the answer is at the end).
    """

    __name__ = "model_reward"

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        label: int = 0,
        sigmoid: bool | None = None,
        batch_size: int = 8,
        max_length: int = 4096,
    ):
        if tokenizer is None and not isinstance(model, str):
            raise ValueError("a loaded model needs its tokenizer")
        self.model, self.tokenizer = model, tokenizer if tokenizer is not None else model
        self.label, self.sigmoid, self.batch_size, self.max_length = label, sigmoid, batch_size, max_length
        self._loaded: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            model, tokenizer = self.model, self.tokenizer
            if isinstance(model, str):
                from transformers import AutoModelForSequenceClassification

                model = AutoModelForSequenceClassification.from_pretrained(model)
            if isinstance(tokenizer, str):
                from transformers import AutoTokenizer

                tokenizer = AutoTokenizer.from_pretrained(tokenizer)
            if tokenizer.pad_token_id is None:
                tokenizer.pad_token = tokenizer.eos_token
            model.config.pad_token_id = tokenizer.pad_token_id
            self._loaded = (model.eval(), tokenizer)
        return self._loaded

    def __call__(
        self, completions: Sequence[Completion], prompts: Sequence[Completion], **kwargs
    ) -> list[float | None]:
        import torch

        model, tokenizer = self._load()
        texts = render(prompts, completions, tokenizer)
        sigmoid = self.sigmoid
        if sigmoid is None:
            sigmoid = model.config.problem_type == "multi_label_classification"
        rewards: list[float | None] = []
        for start in range(0, len(texts), self.batch_size):
            batch = texts[start : start + self.batch_size]
            inputs = encode(batch, tokenizer, self.max_length, padding=True, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                logits = model(**inputs).logits.float()
            if logits.shape[-1] > 1:
                scores = logits.softmax(-1)[:, self.label]
            else:
                scores = logits[:, 0].sigmoid() if sigmoid else logits[:, 0]
            rewards += [float(s) if s == s else None for s in scores.tolist()]
        return rewards
