"""Rewards by name: what recipes and the command line use instead of imports."""

import difflib
import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

Reward = Callable[..., list[float | None]]

# What TRL 1.16 passes to every reward; any other parameter is a dataset column.
TRL_ARGUMENTS = frozenset(
    {
        "prompts",
        "completions",
        "completion_ids",
        "trainer_state",
        "log_extra",
        "log_metric",
        "environments",
    }
)

# name -> "module:attribute" within this package; classes are built with the parameters of the spec.
CATALOGUE: dict[str, str] = {
    "accuracy": "accuracy:AccuracyReward",
    "numeric": "accuracy:NumericReward",
    "strict_numeric": "accuracy:strict_numeric_reward",
    "lenient_numeric": "accuracy:lenient_numeric_reward",
    "format": "format:FormatReward",
    "reasoning_format": "format:reasoning_format_reward",
    "think_format": "format:think_format_reward",
    "tag_count": "format:tag_count_reward",
    "tag_order": "format:tag_order_reward",
    "xmlcount": "format:xmlcount_reward",
    "reasoning_steps": "format:reasoning_steps_reward",
    "len": "length:LengthReward",
    "cosine_scaled": "length:CosineScaledReward",
    "soft_overlong_punishment": "length:SoftOverlongPunishment",
    "repetition_penalty": "length:RepetitionPenalty",
    "countdown": "countdown:CountdownReward",
    "multiple_choice": "choice:multiple_choice_reward",
    "exact_match": "choice:exact_match_reward",
    "integer": "choice:integer_reward",
    "language_consistency": "language:LanguageConsistencyReward",
    "code": "code_execution:CodeReward",
    "async_code": "code_execution:AsyncCodeReward",
    "code_format": "code_execution:code_format_reward",
    "reasoning_gym": "procedural:ReasoningGymReward",
    "model": "reward_model:ModelReward",
    "weighted": "combinators:WeightedReward",
    "gated": "combinators:GatedReward",
    "clipped": "combinators:ClippedReward",
    "scheduled": "combinators:ScheduledReward",
    "dispatch": "combinators:DispatchReward",
    "difficulty_band": "combinators:DifficultyBandReward",
}


def get_reward(spec: str | Mapping[str, Any] | Reward) -> Reward:
    """Resolve a reward.

    Args:
        spec: a catalogue name (`"accuracy"`, also `"accuracy_reward"`), a dotted import path
            (`"my_package.rewards.mine"`), the directory of a saved reward model or verifier, a mapping
            `{"name": <any of these>, **parameters}` which builds a parametrised reward, or a callable, which is
            returned as it is.

    Raises:
        ValueError: unknown name (near matches are listed), or a dotted path that cannot be imported.
        TypeError: parameters that the reward does not take.
    """
    if isinstance(spec, Mapping):
        parameters = dict(spec)
        if "name" not in parameters:
            raise ValueError(f"a reward given as a mapping needs 'name'; got the keys {sorted(map(str, spec))}")
        name = parameters.pop("name")
    elif isinstance(spec, str):
        name, parameters = spec, {}
    elif callable(spec):
        return spec
    else:
        raise TypeError(f"a reward is a name, a mapping or a callable, not {type(spec).__name__}")

    if os.path.isfile(os.path.join(name, "config.json")):
        return lookup("model")(name, **parameters)
    target: Any = lookup(name)
    if isinstance(target, type):
        return target(**parameters)
    if parameters:
        raise TypeError(f"the reward {name!r} takes no parameters; got {sorted(parameters)}")
    return target


def lookup(name: str) -> Any:
    """Return what a name or dotted path stands for, a reward or a class that builds one; see `get_reward`."""
    key = name.removesuffix("_reward")
    for known in (name, key):
        if known in CATALOGUE:
            module, _, attribute = CATALOGUE[known].partition(":")
            return getattr(importlib.import_module(f"{__package__}.{module}"), attribute)
    if "." in name:
        module, _, attribute = name.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"cannot import the reward {name!r}: {error}") from error
    near = difflib.get_close_matches(key, CATALOGUE, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"unknown reward {name!r}: {hint}known rewards are {', '.join(sorted(CATALOGUE))}")


def required_columns(reward: Reward) -> set[str]:
    """Return the dataset columns that `reward` cannot do without: its parameters without a default, less TRL's own.

    A combinator names its columns in an attribute `required_columns`.
    """
    declared = getattr(reward, "required_columns", None)
    if declared is not None:
        return set(declared)
    return {
        parameter.name
        for parameter in inspect.signature(reward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in TRL_ARGUMENTS
    }
