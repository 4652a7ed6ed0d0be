"""Rewards for length, in tokens, and for repetition, over token ids.

Characters are used only where a caller passes no `completion_ids`: a tokenizer-free fallback for calls by hand.
"""

import json
import math
from collections.abc import Callable, Sequence

from .accuracy import AccuracyReward, accuracy_reward
from .text import Completion, completion_text

TokenIds = Sequence[Sequence[int]]


def lengths_of(completions: Sequence[Completion], completion_ids: TokenIds | None) -> list[int]:
    """Return the length of each completion in tokens, or in characters without `completion_ids`."""
    if completion_ids is None:
        return [len(completion_text(completion)) for completion in completions]
    return [len(ids) for ids in completion_ids]


class LengthReward:
    """Favour the short ones among the completions of one prompt: 0.5 - (n - min) / (max - min); wrong ones at most 0.

    Source: Kimi k1.5, arXiv 2501.12599, section 2.3.3. The shortest and longest are taken per prompt, not over the
    batch. 0.0 throughout a group of equal lengths; without prompts the batch is one group.

    Args:
        accuracy: the reward that tells right from wrong.
    """

    __name__ = "len_reward"

    def __init__(self, accuracy: AccuracyReward = accuracy_reward):
        self.accuracy = accuracy

    def __call__(
        self,
        completions: Sequence[Completion],
        solution: Sequence,
        prompts: Sequence[Completion] | None = None,
        completion_ids: TokenIds | None = None,
        **kwargs,
    ) -> list[float | None]:
        correct = self.accuracy(completions, solution, prompts=prompts)
        lengths = lengths_of(completions, completion_ids)
        keys = (
            [json.dumps(p, sort_keys=True, default=str) for p in prompts]
            if prompts is not None
            else [""] * len(lengths)
        )
        groups: dict[str, list[int]] = {}
        for key, length in zip(keys, lengths, strict=True):
            groups.setdefault(key, []).append(length)
        rewards: list[float | None] = []
        for key, length, right in zip(keys, lengths, correct, strict=True):
            low, high = min(groups[key]), max(groups[key])
            value = 0.5 - (length - low) / (high - low) if high > low else 0.0
            rewards.append(None if right is None else value if right else min(0.0, value))
        return rewards


class CosineScaledReward:
    """Scale correctness by length along half a cosine: right answers better short, wrong ones less bad long.

    Source: "Demystifying Long Chain-of-Thought Reasoning", arXiv 2502.03373, appendix C.1. The length is clamped to
    `max_len`, beyond which the cosine would rise again.

    Args:
        max_len: tokens at which the schedule ends.
        min_value_wrong, max_value_wrong: wrong at length 0, wrong at `max_len`.
        min_value_correct, max_value_correct: right at `max_len`, right at length 0.
        accuracy: the reward that tells right from wrong.
    """

    __name__ = "cosine_scaled_reward"

    def __init__(
        self,
        max_len: int = 1000,
        min_value_wrong: float = -1.0,
        max_value_wrong: float = -0.5,
        min_value_correct: float = 0.5,
        max_value_correct: float = 1.0,
        accuracy: AccuracyReward = accuracy_reward,
    ):
        if max_len <= 0:
            raise ValueError(f"max_len must be positive, not {max_len}")
        self.max_len, self.accuracy = max_len, accuracy
        self.wrong, self.correct = (min_value_wrong, max_value_wrong), (max_value_correct, min_value_correct)

    def __call__(
        self,
        completions: Sequence[Completion],
        solution: Sequence,
        completion_ids: TokenIds | None = None,
        prompts: Sequence[Completion] | None = None,
        **kwargs,
    ) -> list[float | None]:
        rewards: list[float | None] = []
        correct = self.accuracy(completions, solution, prompts=prompts)
        for right, length in zip(correct, lengths_of(completions, completion_ids), strict=True):
            if right is None:
                rewards.append(None)
                continue
            at_start, at_end = self.correct if right else self.wrong
            progress = min(length / self.max_len, 1.0)
            rewards.append(at_end + 0.5 * (at_start - at_end) * (1.0 + math.cos(math.pi * progress)))
        return rewards


class SoftOverlongPunishment:
    """0 up to `max_completion_len - soft_punish_cache` tokens, falling to -1 at `max_completion_len`, -1 beyond.

    Source: DAPO, arXiv 2503.14476, equation 13.
    """

    __name__ = "soft_overlong_punishment_reward"

    def __init__(self, max_completion_len: int, soft_punish_cache: int):
        if not 0 <= soft_punish_cache <= max_completion_len:
            raise ValueError(
                f"soft_punish_cache ({soft_punish_cache}) must lie in 0..max_completion_len ({max_completion_len})"
            )
        self.max_completion_len, self.soft_punish_cache = max_completion_len, soft_punish_cache

    def __call__(self, completion_ids: TokenIds, **kwargs) -> list[float | None]:
        free = self.max_completion_len - self.soft_punish_cache
        rewards: list[float | None] = []
        for ids in completion_ids:
            over = len(ids) - free
            if over <= 0:
                rewards.append(0.0)
            elif len(ids) > self.max_completion_len:
                rewards.append(-1.0)
            else:
                rewards.append(-over / self.soft_punish_cache)
        return rewards


class RepetitionPenalty:
    """`max_penalty` times the share of repeated n-grams of token ids; 0.0 for completions shorter than one n-gram.

    Source: arXiv 2502.03373, appendix C.2. Over tokens and not words, so that text without spaces does not escape;
    called by hand without ids it uses characters.

    Args:
        ngram_size: tokens per n-gram.
        max_penalty: the value for endless repetition, not positive.
    """

    __name__ = "repetition_penalty_reward"

    def __init__(self, ngram_size: int = 3, max_penalty: float = -1.0):
        if max_penalty > 0:
            raise ValueError(f"max_penalty {max_penalty} should not be positive")
        if ngram_size < 1:
            raise ValueError(f"ngram_size {ngram_size} must be at least 1")
        self.ngram_size, self.max_penalty = ngram_size, max_penalty

    def __call__(
        self,
        completion_ids: TokenIds | None = None,
        completions: Sequence[Completion] | None = None,
        **kwargs,
    ) -> list[float | None]:
        if completion_ids is None:
            if completions is None:
                raise TypeError("repetition_penalty_reward needs completion_ids or completions")
            sequences: Sequence[Sequence] = [completion_text(c) for c in completions]
        else:
            sequences = completion_ids
        rewards: list[float | None] = []
        for ids in sequences:
            total = len(ids) - self.ngram_size + 1
            unique = len({tuple(ids[i : i + self.ngram_size]) for i in range(total)})
            rewards.append(self.max_penalty * (1 - unique / total) if total > unique else 0.0)
        return rewards


def get_cosine_scaled_reward(
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    max_len: int = 1000,
) -> Callable[..., list[float | None]]:
    """`CosineScaledReward` by open-r1's name for it; pass arguments by name, since TRL orders them otherwise."""
    return CosineScaledReward(max_len, min_value_wrong, max_value_wrong, min_value_correct, max_value_correct)


def get_repetition_penalty_reward(ngram_size: int = 3, max_penalty: float = -1.0) -> RepetitionPenalty:
    """`RepetitionPenalty` by TRL's and open-r1's name for it."""
    return RepetitionPenalty(ngram_size, max_penalty)


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int) -> SoftOverlongPunishment:
    """`SoftOverlongPunishment` by TRL's and open-r1's name for it."""
    return SoftOverlongPunishment(max_completion_len, soft_punish_cache)


len_reward = LengthReward()
