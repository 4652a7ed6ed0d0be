"""reasoning-gym's tasks as a reward, with guards around the scorers that can be fooled or that execute text.

Measured on reasoning-gym 0.1.25: the scorers of countdown and puzzle24 hand the answer to sympy's `parse_expr`, which
runs code; game_of_life_halting pays for any non-empty text; the base scorer pays a part for an answer that merely
contains the right one; prime_factorization raises on text.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from .arithmetic import evaluate
from .choice import whole_answer
from .countdown import CountdownReward
from .numeric import parse_number
from .text import Completion, aligned, completion_text, is_prefilled

MAX_ANSWER = 20_000  # characters

# Tasks with more than one right answer, whose own scorers parse and check without running text. Everything else is
# compared with the oracle's answer.
VETTED = frozenset(
    """binary_matrix graph_color futoshiki jugs knight_swap kakurasu mini_sudoku n_queens number_sorting
    palindrome_generation rotate_matrix rotten_oranges rush_hour shortest_path sokoban sudoku survo tower_of_hanoi
    word_ladder maze course_schedule""".split()  # noqa: SIM905
)


@lru_cache(maxsize=128)
def _dataset(name: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, size=1, seed=0)


class ReasoningGymReward:
    """1.0, or for vetted scorers a part, for the answer of a reasoning-gym entry; None where it cannot be judged.

    The column `entry` holds what reasoning-gym generated (or its JSON): "answer" and "metadata" with
    "source_dataset". The answer is the one `<answer>` block, else what follows the thoughts.

    Raises:
        ImportError: reasoning-gym is not installed (the extra `procedural`), for tasks that need its scorer.
    """

    __name__ = "reasoning_gym_reward"

    def __call__(
        self,
        completions: Sequence[Completion],
        entry: Sequence[Mapping[str, Any] | str],
        prompts: Sequence[Completion] | None = None,
        **kwargs,
    ) -> list[float | None]:
        rewards: list[float | None] = []
        for completion, row, prompt in zip(completions, entry, aligned(prompts, len(completions)), strict=True):
            row = json.loads(row) if isinstance(row, str) else row
            answer = whole_answer(completion_text(completion), is_prefilled(prompt))
            rewards.append(self.score(answer, row))
        return rewards

    def score(self, answer: str | None, entry: Mapping[str, Any]) -> float | None:
        """Score one answer for one entry."""
        metadata = entry.get("metadata") or {}
        name, oracle = metadata.get("source_dataset"), entry.get("answer")
        if not answer or len(answer) > MAX_ANSWER:
            return 0.0
        if name == "countdown":
            text = f"<answer>{answer}</answer>"
            return float(CountdownReward().is_solution(text, metadata["numbers"], metadata["target"]))
        if name == "puzzle24":
            result = evaluate(answer.partition("=")[0])
            used = sorted(result.numbers) if result else []
            return float(result is not None and result.value == 24 and used == sorted(metadata["numbers"]))
        if oracle is not None and self._equal(answer, str(oracle)):
            return 1.0
        if name in VETTED:
            try:
                value = float(_dataset(name).score_answer(answer, entry))
            except ImportError:
                raise
            except Exception:  # a scorer that raises on text has judged it
                return 0.0
            # Small consolation values are farmed by any text of the right form.
            return value if value >= 0.5 else 0.0
        return None if oracle is None else 0.0

    @staticmethod
    def _equal(answer: str, oracle: str) -> bool:
        ours, theirs = parse_number(answer), parse_number(oracle)
        if ours is not None and theirs is not None:
            return ours.value == theirs.value
        return [line.split() for line in answer.strip().splitlines()] == [
            line.split() for line in oracle.strip().splitlines()
        ]


reasoning_gym_reward = ReasoningGymReward()
