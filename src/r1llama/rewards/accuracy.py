"""The accuracy reward: 1.0 for the gold answer, 0.0 for anything else, None when the gold cannot be judged."""

from collections.abc import Callable, Sequence

from .extraction import extract_answer
from .grading import compare_fast, gold_value, percent_expected
from .text import Completion, aligned, completion_text, is_prefilled, prompt_text


class AccuracyReward:
    """Grade the answer that a completion commits to against the column `solution`.

    Args:
        mode: how answers are found, see `extract_answer`: "lenient" or "strict".

    Returns (when called): per completion 1.0 (right), 0.0 (wrong, or no answer that counts), None (no usable gold).
    """

    def __init__(self, mode: str = "lenient"):
        self.mode = mode
        self.__name__ = "accuracy_reward"

    def __call__(
        self,
        completions: Sequence[Completion],
        solution: Sequence,
        prompts: Sequence[Completion] | None = None,
        log_extra: Callable | None = None,
        log_metric: Callable | None = None,
        **kwargs,
    ) -> list[float | None]:
        rewards: list[float | None] = []
        for completion, gold_cell, prompt in zip(
            completions, solution, aligned(prompts, len(completions)), strict=True
        ):
            gold = gold_value(gold_cell)
            if not gold:
                rewards.append(None)
                continue
            asked = prompt_text(prompt)
            answer = extract_answer(completion_text(completion), self.mode, is_prefilled(prompt), asked)
            verdict = compare_fast(answer.value, gold, percent_expected(gold_cell, asked)) if answer.value else None
            rewards.append(float(bool(verdict and verdict.correct)))
        return rewards


accuracy_reward = AccuracyReward()
