"""Reward functions that cannot be fooled, hung or crashed, as plain callables for `trl.GRPOTrainer`.

Every reward is `f(completions, ..., **columns) -> list[float | None]`, one value per completion, None where nothing
can be judged. Importing this package is light: no torch, no sympy.
"""

from .accuracy import AccuracyReward, accuracy_reward
from .catalogue import CATALOGUE, get_reward, required_columns
from .extraction import Answer, extract_answer
from .format import FormatReward, format_reward, reasoning_format_reward

__all__ = [
    "CATALOGUE",
    "AccuracyReward",
    "Answer",
    "FormatReward",
    "accuracy_reward",
    "extract_answer",
    "format_reward",
    "get_reward",
    "reasoning_format_reward",
    "required_columns",
]
