"""SFT in which the reasoning tags weigh more than the words between them.

- `TagSpans`: where the tags lie among the tokens of a batch
- `TagCollator`: a collator whose batches also tell the spans
- `ThinkWeightedSFTTrainer`: TRL's `SFTTrainer` with a weight per tag

With label y_t, weight w_t (1 outside the tags) and N the labelled tokens of a whole optimizer step, over its
micro-batches and processes:

    loss = sum_N w_t * -log p(y_t | y_<t) / sum_N w_t

Dividing by the sum of the weights, not by the number of tokens, keeps the learning rate's meaning: the tags gain what
the other tokens lose. The log-probabilities are those of TRL's fused head, so logits are never materialised.
"""

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from r1llama.data.tokenizer import TAGS
from r1llama.training.collator import pack_in_rows
from r1llama.training.whole_rows import WholeRows


def check_weights(tag_weights: dict[str, float] | float) -> dict[str, float]:
    """Weight by tag; one number stands for all four tags.

    Raises:
        ValueError: A weight is no finite number above 0, or there is no tag.
    """
    if not isinstance(tag_weights, dict):
        tag_weights = dict.fromkeys(TAGS, tag_weights)
    for tag, weight in tag_weights.items():
        if not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"`tag_weights`: {tag}: {weight!r} must be a finite number above 0")
    if not tag_weights or not all(tag_weights):
        raise ValueError("`tag_weights` must name at least one tag, and no empty one")
    return tag_weights


class TagSpans:
    """Finds tags in token ids, however the vocabulary cuts them: one token, several, or several of which the first or
    last also holds a neighbour of the tag, such as `>\\n` or `.</`. A token belongs to a tag if they share a
    character; a token cannot be weighed in part.

    Args:
        tokenizer: Spells the tags and the tokens.
        tags: Texts to find, such as `<think>`.
    """

    def __init__(self, tokenizer, tags: list[str]):
        self.tags = list(tags)
        size = max(tokenizer.get_vocab().values()) + 1
        self.pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(range(size))]
        # In the letters of the vocabulary, which spells bytes its own way and may put a word boundary in front
        ids = [tokenizer(tag, add_special_tokens=False)["input_ids"] for tag in self.tags]
        spelled = ["".join(self.pieces[i] for i in row) for row in ids]
        self.spelled = [
            text if tag[0] in " ▁Ġ" else text.lstrip("▁Ġ") for tag, text in zip(tags, spelled, strict=True)
        ]
        heads = tuple({tag[:n] for tag in self.spelled for n in range(1, len(tag))})
        inner = {letter for tag in self.spelled for letter in tag[1:]}
        self.holds = np.array([any(tag in piece for tag in self.spelled) for piece in self.pieces])
        self.may_begin = np.array([piece.endswith(heads) for piece in self.pieces])
        self.may_follow = np.array([piece[:1] in inner for piece in self.pieces])
        self.longest = max(map(len, self.spelled))

    def find(self, ids: np.ndarray) -> list[tuple[int, int, int]]:
        """`(start, stop, tag)` of every span in one document, as half-open token ranges and indices of `tags`."""
        spans, begins = [], self.holds[ids]
        begins[:-1] |= self.may_begin[ids[:-1]] & self.may_follow[ids[1:]]
        for start in np.flatnonzero(begins):
            window = [self.pieces[i] for i in ids[start : start + self.longest]]
            text, ends = "".join(window), list(accumulate(map(len, window)))
            for tag, spelled in enumerate(self.spelled):
                at = text.find(spelled, 0, ends[0] + len(spelled) - 1)  # begins in this token
                while at >= 0:
                    stop = next(n for n, end in enumerate(ends, start=1) if end >= at + len(spelled))
                    spans.append((int(start), int(start) + stop, tag))
                    at = text.find(spelled, at + 1, ends[0] + len(spelled) - 1)
        return spans


@dataclass
class TagCollator:
    """A collator's batches, plus `tag_spans` (batch, tokens): 0 outside the tags and where nothing is learned; else
    `n * (len(tags) + 1) + 1 + tag` in the n-th span of the row, counted from 1.

    A token that two tags share (`><`) counts as the one that stands later in `spans.tags`.

    Args:
        collator: TRL's, or `r1llama.training.collator.PackedCollator`.
        spans: Finds the tags.
    """

    collator: DataCollatorForLanguageModeling
    spans: TagSpans

    def __call__(self, examples, return_tensors=None):
        batch = self.collator(examples)
        ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
        codes = np.zeros_like(ids)
        for row, row_ids in enumerate(ids):
            # Documents of a packed row: a tag does not begin in one and end in the next
            begins = np.flatnonzero(batch["position_ids"][row].numpy() == 0) if "position_ids" in batch else []
            spans = []
            for begin, end in zip([0, *begins], [*begins, len(row_ids)], strict=True):
                spans += [(begin + a, begin + b, tag) for a, b, tag in self.spans.find(row_ids[begin:end])]
            for n, (start, stop, tag) in enumerate(sorted(spans, key=lambda span: span[2]), start=1):
                codes[row, start:stop] = n * (len(self.spans.tags) + 1) + 1 + tag
        codes[labels == -100] = 0
        batch["tag_spans"] = torch.from_numpy(codes)
        return batch


class ThinkWeightedSFTTrainer(WholeRows, SFTTrainer):
    """TRL's `SFTTrainer`, with more weight on the reasoning tags. With weight 1 it computes the very same loss.

    Only labelled tokens weigh: with `completion_only_loss` or `assistant_only_loss`, a tag in the prompt counts
    nothing. With `packing`, blocks are the rows of a batch where that is faster (`r1llama.training.collator`).

    Logs, besides what `SFTTrainer` logs, `tag_emission`: the share of labelled tags of which every token is the
    model's likeliest, given the text before; and the same per tag, `tag_emission/<think>`. On evaluation, `eval_loss`
    is the weighted mean over all tokens, however they are batched, and `eval_perplexity` knows no weights.

    Args:
        *args: As `SFTTrainer` takes them.
        tag_weights: Weight by tag, or one for `<think>`, `</think>`, `<answer>` and `</answer>`.
        **kwargs: As `SFTTrainer` takes them.

    Raises:
        ValueError: A weight that is no positive number, or a loss that cannot be weighed.

    Example:
        >>> trainer = ThinkWeightedSFTTrainer(model, train_dataset=traces, tag_weights={"<think>": 10, "</think>": 10})
        >>> trainer.train()
    """

    def __init__(self, *args, tag_weights: dict[str, float] | float = 10.0, **kwargs):
        tag_weights = check_weights(tag_weights)
        super().__init__(*args, **kwargs)
        if self.args.loss_type != "nll" or self.args.label_smoothing_factor or self.compute_loss_func is not None:
            raise ValueError(
                "the tags are weighed in the plain loss: leave `loss_type: nll`, `label_smoothing_factor: 0` and no "
                "`compute_loss_func`"
            )
        if type(self.data_collator) is not DataCollatorForLanguageModeling:
            raise ValueError(
                "the tags are found by the trainer's own collator: pass no `data_collator`, and text only"
            )
        if self.get_cp_size() * self.get_sp_size() > 1:
            raise ValueError(
                "context and sequence parallelism cut the rows apart, and the tags with them: use neither"
            )
        # Of two tags that share a token the later counts: the heavier one
        tags = sorted(tag_weights, key=tag_weights.get)
        pack_in_rows(self)
        self.data_collator = TagCollator(self.data_collator, TagSpans(self._tokenizer, tags))
        self._weights = torch.tensor([1.0, *(float(tag_weights[tag]) for tag in tags)])  # by code % (len(tags) + 1)
        self._sums: dict[str, torch.Tensor] = {}

    def _get_num_items_in_batch(self, batch_samples, device):
        """The sum of the weights over the micro-batches and processes of an optimizer step."""
        if not batch_samples:
            return None
        total = torch.zeros((), device=device)
        for batch in batch_samples:
            is_target = batch["labels"][:, 1:] != -100
            total += (self._weigh(batch["tag_spans"][:, 1:]) * is_target).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total / self.get_tp_size()  # whose processes hold the same batch

    def _weigh(self, codes):
        self._weights = self._weights.to(codes.device)
        return self._weights[codes % len(self._weights)]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        codes = inputs.pop("tag_spans")[:, 1:]  # of the targets

        def weighted(**kwargs):
            outputs = model(**kwargs)
            if not kwargs.get("fused_lm_head"):
                return outputs
            weights = self._weigh(codes)
            if num_items_in_batch is None:  # evaluation: `SFTTrainer` divides by the number of labelled tokens
                mask = outputs.label_mask
                weights = weights * (mask.sum() / (weights * mask).sum().clamp(min=1e-9))
            unweighted = outputs.log_probs
            outputs.log_probs = unweighted * weights
            self._add_up(codes, outputs, unweighted)
            return outputs

        return super().compute_loss(weighted, inputs, return_outputs, num_items_in_batch)

    @torch.no_grad()
    def _add_up(self, codes, outputs, log_probs) -> None:
        """For the next log: tokens and the sum of their weights, losses without and with weights; and, by tag, the
        spans and those among them that are wholly the likeliest tokens."""
        kinds, rows = len(self._weights), torch.arange(len(codes), device=codes.device)[:, None]
        spans = (rows * (codes.shape[1] + 1) + codes // kinds).flatten()  # one number a span
        missed = torch.zeros(len(codes) * (codes.shape[1] + 1), device=codes.device)
        missed.scatter_add_(0, spans, (~outputs.is_top1.bool()).flatten().float())
        begins = codes != torch.nn.functional.pad(codes[:, :-1], (1, 0))
        emitted = begins & (missed[spans].view_as(codes) == 0)
        by_tag = (codes % kinds).flatten()
        counts = torch.zeros(2, kinds, device=codes.device)
        for count, those in zip(counts, (begins, emitted), strict=True):
            count.scatter_add_(0, by_tag, those.flatten().float())
        weights, mask = self._weigh(codes), outputs.label_mask
        totals = [mask.sum(), (weights * mask).sum(), -log_probs.sum(), -(weights * log_probs).sum()]
        sums = torch.cat([torch.stack(totals), counts[:, 1:].flatten()])
        mode = "train" if self.model.training else "eval"
        self._sums[mode] = sums + self._sums[mode] if mode in self._sums else sums

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        if mode in self._sums:
            sums = self.accelerator.reduce(self._sums.pop(mode), "sum").tolist()
            tokens, weight, loss, weighted_loss, *counts = sums
            tags = self.data_collator.spans.tags
            found, emitted = counts[: len(tags)], counts[len(tags) :]
            shares = {"tag_emission": (sum(emitted), sum(found))}
            shares |= {f"tag_emission/{tag}": pair for tag, *pair in zip(tags, emitted, found, strict=True)}
            for name, (part, whole) in shares.items():
                if whole:
                    self._metrics[mode][name].append(part / whole)
            if mode == "eval" and tokens:
                logs |= {name: weighted_loss / weight for name in logs if name.endswith("_loss")}
                self._metrics[mode]["perplexity"].append(math.exp(min(loss / tokens, 700)))
        super().log(logs, start_time)
