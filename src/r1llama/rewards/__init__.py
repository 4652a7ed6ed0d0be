"""Reward functions that cannot be fooled, hung or crashed, as plain callables for `trl.GRPOTrainer`.

Every reward is `f(completions, ..., **columns) -> list[float | None]`, one value per completion, None where nothing
can be judged. Importing this package is light: no torch, no sympy.
"""

from .accuracy import (
    AccuracyReward,
    NumericReward,
    accuracy_reward,
    lenient_numeric_reward,
    strict_numeric_reward,
)
from .catalogue import CATALOGUE, get_reward, required_columns
from .choice import exact_match_reward, integer_reward, multiple_choice_reward
from .code_execution import AsyncCodeReward, CodeFormatReward, CodeReward, code_format_reward
from .combinators import (
    ClippedReward,
    DifficultyBandReward,
    DispatchReward,
    GatedReward,
    ScheduledReward,
    WeightedReward,
)
from .countdown import CountdownReward, countdown_reward
from .diagnostics import diagnose
from .extraction import Answer, extract_answer
from .format import (
    FormatReward,
    format_reward,
    reasoning_format_reward,
    reasoning_steps_reward,
    tag_count_reward,
    tag_order_reward,
    think_format_reward,
    xmlcount_reward,
)
from .language import LanguageConsistencyReward, language_consistency_reward
from .length import (
    CosineScaledReward,
    LengthReward,
    RepetitionPenalty,
    SoftOverlongPunishment,
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    len_reward,
)
from .procedural import ReasoningGymReward, reasoning_gym_reward
from .reward_model import ModelReward

__all__ = [
    "CATALOGUE",
    "AccuracyReward",
    "Answer",
    "AsyncCodeReward",
    "ClippedReward",
    "CodeFormatReward",
    "CodeReward",
    "CosineScaledReward",
    "CountdownReward",
    "DifficultyBandReward",
    "DispatchReward",
    "FormatReward",
    "GatedReward",
    "LanguageConsistencyReward",
    "LengthReward",
    "ModelReward",
    "NumericReward",
    "ReasoningGymReward",
    "RepetitionPenalty",
    "ScheduledReward",
    "SoftOverlongPunishment",
    "WeightedReward",
    "accuracy_reward",
    "code_format_reward",
    "countdown_reward",
    "diagnose",
    "exact_match_reward",
    "extract_answer",
    "format_reward",
    "get_cosine_scaled_reward",
    "get_repetition_penalty_reward",
    "get_reward",
    "get_soft_overlong_punishment",
    "integer_reward",
    "language_consistency_reward",
    "len_reward",
    "lenient_numeric_reward",
    "multiple_choice_reward",
    "reasoning_format_reward",
    "reasoning_gym_reward",
    "reasoning_steps_reward",
    "required_columns",
    "strict_numeric_reward",
    "tag_count_reward",
    "tag_order_reward",
    "think_format_reward",
    "xmlcount_reward",
]
