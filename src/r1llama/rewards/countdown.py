"""The countdown game: reach a target from given numbers with + - * /, each number at most (or exactly) once."""

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from .arithmetic import evaluate
from .extraction import extract_answer
from .numeric import strip_latex
from .text import Completion, aligned, completion_text, is_prefilled


class CountdownReward:
    """1.0 when the answer is an expression over the column `nums` that equals the column `target`, else 0.0.

    The expression is read by `arithmetic.evaluate`: exact, without `eval`, without powers, decimals or unary signs.
    "= target" may stand beside it. The column names are TinyZero's.

    Args:
        use_all: every number must be used exactly once; False: at most once.
    """

    __name__ = "countdown_reward"

    def __init__(self, use_all: bool = True):
        self.use_all = use_all

    def __call__(
        self,
        completions: Sequence[Completion],
        nums: Sequence[Sequence[int]],
        target: Sequence[int],
        prompts: Sequence[Completion] | None = None,
        **kwargs,
    ) -> list[float | None]:
        rows = zip(completions, nums, target, aligned(prompts, len(completions)), strict=True)
        return [float(self.is_solution(completion_text(c), n, t, is_prefilled(p))) for c, n, t, p in rows]

    def is_solution(self, text: str, nums: Sequence[int], target: int, prefilled: bool = False) -> bool:
        """Tell whether `text` answers with a valid expression."""
        answer = extract_answer(text, "strict", prefilled)
        if answer.value is None or len(answer.value) > 1000:
            return False
        value = strip_latex(answer.value.strip())
        sides = [side.strip() for side in value.split("=")]
        if len(sides) == 2:
            # Drop the side that only states the target.
            sides = [side for side in sides if not re.fullmatch(rf"{int(target)}(?:\.0*)?", side)] or sides
        if len(sides) != 1:
            return False
        result = evaluate(sides[0])
        if result is None or result.value != Fraction(int(target)):
            return False
        used, given = Counter(result.numbers), Counter(int(n) for n in nums)
        return used == given if self.use_all else used <= given


countdown_reward = CountdownReward()
