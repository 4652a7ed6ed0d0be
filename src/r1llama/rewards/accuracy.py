"""The accuracy rewards: does a completion commit to the gold answer?"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import algebra
from .diagnostics import report
from .extraction import Answer, extract_answer
from .grading import Verdict, compare, gold_value, names_several, percent_expected
from .numeric import parse_number
from .text import Completion, aligned, completion_text, is_prefilled, prompt_text


class Grade(NamedTuple):
    """How one completion was judged: `reward` is 1.0, 0.0 or None, `reason` a code, `milliseconds` of wall clock."""

    reward: float | None
    answer: Answer
    gold: str
    reason: str
    milliseconds: float


class AccuracyReward:
    """Grade the answer that a completion commits to against the column `solution`.

    Args:
        mode: how answers are found, see `extract_answer`: "lenient" or "strict".
        timeout: seconds of wall clock that computer algebra may take for one batch; numbers never need it.
        workers: processes for computer algebra; None: `R1LLAMA_REWARD_WORKERS`, else two.

    Returns (when called): per completion 1.0 (right), 0.0 (wrong, or no answer that counts) or None (no usable gold,
    or the clock ran out before its turn). The column may hold plain values, `\\boxed{}` solutions or whole GSM8K
    answers that end in `#### 72`.
    """

    numeric_only = False

    def __init__(self, mode: str = "lenient", timeout: float = algebra.TIMEOUT, workers: int | None = None):
        extract_answer("", mode)  # refuse an unknown mode now and not in the middle of training
        self.mode, self.timeout, self.workers = mode, timeout, workers
        self.__name__ = "accuracy_reward" if mode == "lenient" else f"{mode}_accuracy_reward"

    def grade(
        self, completions: Sequence[Completion], solution: Sequence, prompts: Sequence[Completion] | None = None
    ) -> list[Grade]:
        """Judge each completion, with the reasons."""
        grades: list[Grade] = []
        undecided: list[int] = []
        golds: dict[object, str] = {}
        for completion, cell, prompt in zip(completions, solution, aligned(prompts, len(completions)), strict=True):
            start = time.perf_counter()
            key = cell if isinstance(cell, str) else repr(cell)
            if key not in golds:
                golds[key] = gold_value(cell)
            gold = golds[key]
            asked = prompt_text(prompt)
            prefilled = bool(asked) and is_prefilled(asked)
            answer = extract_answer(completion_text(completion), self.mode, prefilled, asked, names_several(gold))
            verdict = self._verdict(answer, gold, percent_expected(cell, asked))
            if verdict.reason == "algebra":
                undecided.append(len(grades))
            reward = None if verdict.correct is None else float(verdict.correct)
            grades.append(Grade(reward, answer, gold, verdict.reason, 1000 * (time.perf_counter() - start)))
        if undecided:
            self._decide(grades, undecided)
        return grades

    def _verdict(self, answer: Answer, gold: str, percent: bool) -> Verdict:
        if not gold or (self.numeric_only and parse_number(gold) is None):
            return Verdict(None, "no_gold")
        if answer.value is None:
            return Verdict(False, answer.reason)
        return compare(answer.value, gold, percent)

    def _decide(self, grades: list[Grade], undecided: list[int]) -> None:
        start = time.perf_counter()
        pairs = [(grades[i].answer.value or "", grades[i].gold) for i in undecided]
        verdicts = algebra.compare(pairs, self.timeout, self.workers)
        share = 1000 * (time.perf_counter() - start) / len(pairs)
        for i, verdict in zip(undecided, verdicts, strict=True):
            reward = None if verdict.correct is None else float(verdict.correct)
            grades[i] = grades[i]._replace(
                reward=reward, reason=verdict.reason, milliseconds=grades[i].milliseconds + share
            )

    def __call__(
        self,
        completions: Sequence[Completion],
        solution: Sequence,
        prompts: Sequence[Completion] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs,
    ) -> list[float | None]:
        grades = self.grade(completions, solution, prompts)
        report(self.__name__.removesuffix("_reward"), grades, prompts, log_extra, log_metric)
        return [grade.reward for grade in grades]


class NumericReward(AccuracyReward):
    """`AccuracyReward` for golds that are numbers: exact, without computer algebra; None for any other gold.

    Args:
        mode: "strict" for marked answers only, "lenient" also for plain sentences.
    """

    numeric_only = True

    def __init__(self, mode: str = "strict"):
        super().__init__(mode)
        self.__name__ = f"{mode}_numeric_reward"


accuracy_reward = AccuracyReward()
strict_numeric_reward = NumericReward("strict")
lenient_numeric_reward = NumericReward("lenient")
