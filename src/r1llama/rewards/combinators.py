"""Rewards made of rewards. Each takes reward specs (see `get_reward`), so that a recipe can nest them in YAML.

None means "cannot be judged" and passes through: a part that is None leaves a weighted sum, closes no gate, and is
None if every part is.
"""

import asyncio
import inspect
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .catalogue import Reward, get_reward, required_columns
from .text import Completion

Spec = str | Mapping[str, Any] | Reward


def name_of(reward: Reward) -> str:
    """Return the name that TRL logs for a reward."""
    return getattr(reward, "__name__", type(reward).__name__)


def evaluate(reward: Reward, arguments: Mapping[str, Any]) -> list[float | None]:
    """Call a reward, waiting for it when it is asynchronous; also where an event loop runs already (notebooks)."""
    values: Any = reward(**arguments)
    if inspect.isawaitable(values):

        async def wait():
            return await values

        with ThreadPoolExecutor(1) as thread:
            values = thread.submit(asyncio.run, wait()).result()
    return values


class _Combined:
    """A reward over others: resolves their specs and adds up their columns."""

    def __init__(self, name: str, parts: Sequence[Spec]):
        if not parts:
            raise ValueError(f"{name} needs at least one reward")
        self.parts = [get_reward(part) for part in parts]
        self.__name__ = name

    @property
    def required_columns(self) -> set[str]:
        return set().union(*(required_columns(part) for part in self.parts))

    def values(self, arguments: Mapping[str, Any]) -> list[list[float | None]]:
        """Return the values of each part."""
        return [evaluate(part, arguments) for part in self.parts]


class WeightedReward(_Combined):
    """The weighted sum of several rewards.

    Args:
        rewards: specs.
        weights: one per reward; 1.0 each by default.
        name: what TRL logs.
    """

    def __init__(self, rewards: Sequence[Spec], weights: Sequence[float] | None = None, name: str = "weighted_reward"):
        super().__init__(name, rewards)
        self.weights = [1.0] * len(self.parts) if weights is None else [float(w) for w in weights]
        if len(self.weights) != len(self.parts):
            raise ValueError(f"{len(self.parts)} rewards need as many weights, not {len(self.weights)}")

    def __call__(self, **arguments) -> list[float | None]:
        sums: list[float | None] = []
        for row in zip(*self.values(arguments), strict=True):
            known = [w * value for w, value in zip(self.weights, row, strict=True) if value is not None]
            sums.append(sum(known) if known else None)
        return sums


class GatedReward(_Combined):
    """`reward` where `gate` reaches `threshold`, else `closed`: unformatted answers earn nothing.

    A format reward that is added can be farmed alone, and destabilises length (open-instruct's finding).
    """

    def __init__(self, reward: Spec, gate: Spec, threshold: float = 1.0, closed: float = 0.0, name: str | None = None):
        super().__init__("", [reward, gate])
        self.__name__ = name or f"gated_{name_of(self.parts[0])}"
        self.threshold, self.closed = threshold, closed

    def __call__(self, **arguments) -> list[float | None]:
        rewards, gates = self.values(arguments)
        return [
            self.closed if gate is not None and gate < self.threshold else reward
            for reward, gate in zip(rewards, gates, strict=True)
        ]


class ClippedReward(_Combined):
    """`reward` limited to `low`..`high`."""

    def __init__(self, reward: Spec, low: float = 0.0, high: float = 1.0, name: str | None = None):
        if low > high:
            raise ValueError(f"low ({low}) is above high ({high})")
        super().__init__("", [reward])
        self.__name__ = name or f"clipped_{name_of(self.parts[0])}"
        self.low, self.high = low, high

    def __call__(self, **arguments) -> list[float | None]:
        (values,) = self.values(arguments)
        return [None if value is None else min(self.high, max(self.low, value)) for value in values]


class ScheduledReward(_Combined):
    """`reward` times a factor that goes linearly through points over the training steps.

    Args:
        schedule: (step, factor) pairs, steps rising; constant before the first and after the last.

    The step is `trainer_state.global_step`, 0 without one.
    """

    def __init__(self, reward: Spec, schedule: Sequence[Sequence[float]], name: str | None = None):
        super().__init__("", [reward])
        self.__name__ = name or f"scheduled_{name_of(self.parts[0])}"
        self.schedule = [(float(step), float(factor)) for step, factor in schedule]
        if not self.schedule or any(a[0] >= b[0] for a, b in zip(self.schedule, self.schedule[1:], strict=False)):
            raise ValueError(f"the steps of a schedule must rise: {schedule}")

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        before = self.schedule[0]
        for after in self.schedule:
            if step < after[0]:
                if after is before:
                    return before[1]
                return before[1] + (after[1] - before[1]) * (step - before[0]) / (after[0] - before[0])
            before = after
        return before[1]

    def __call__(self, **arguments) -> list[float | None]:
        factor = self.factor(getattr(arguments.get("trainer_state"), "global_step", 0) or 0)
        (values,) = self.values(arguments)
        return [None if value is None else factor * value for value in values]


class DispatchReward(_Combined):
    """A different reward per source: the column `column` chooses it, row by row.

    Args:
        rewards: value of the column -> spec.
        column: "source" by default.
        default: the spec for other values; without one they get None.
    """

    def __init__(
        self,
        rewards: Mapping[str, Spec],
        column: str = "source",
        default: Spec | None = None,
        name: str = "dispatch_reward",
    ):
        super().__init__(name, [*rewards.values(), *([] if default is None else [default])])
        self.column = column
        self.by_source = dict(zip(rewards, self.parts, strict=False))
        self.default = self.parts[-1] if default is not None else None

    @property
    def required_columns(self) -> set[str]:
        return super().required_columns | {self.column}

    def __call__(self, **arguments) -> list[float | None]:
        completions = arguments["completions"]
        results: list[float | None] = [None] * len(completions)
        chosen: dict[int, tuple[Reward, list[int]]] = {}
        for row, source in enumerate(arguments[self.column]):
            reward = self.by_source.get(source, self.default)
            if reward is not None:
                chosen.setdefault(id(reward), (reward, []))[1].append(row)
        for reward, rows in chosen.values():
            # The completions table wants one value per row of the whole batch, which a part cannot give.
            part = {
                key: _rows(value, rows, len(completions)) for key, value in arguments.items() if key != "log_extra"
            }
            for row, value in zip(rows, evaluate(reward, part), strict=True):
                results[row] = value
        return results


def _rows(value: Any, rows: Sequence[int], n: int) -> Any:
    return [value[row] for row in rows] if isinstance(value, (list, tuple)) and len(value) == n else value


class DifficultyBandReward(_Combined):
    """`reward` only for prompts whose group passes at a rate within `low`..`high`; None for the others.

    A group that is all right or all wrong has no advantage, and one near that little. The rate is the share of the
    group's values above 0.5; groups are the completions of equal prompts.
    """

    def __init__(self, reward: Spec, low: float = 0.1, high: float = 0.9, name: str | None = None):
        super().__init__("", [reward])
        self.__name__ = name or f"banded_{name_of(self.parts[0])}"
        self.low, self.high = low, high

    def __call__(self, *, prompts: Sequence[Completion], **arguments) -> list[float | None]:
        (values,) = self.values({"prompts": prompts, **arguments})
        keys = [p if isinstance(p, str) else json.dumps(p, sort_keys=True, default=str) for p in prompts]
        groups: dict[str, list[float]] = {}
        for key, value in zip(keys, values, strict=True):
            if value is not None:
                groups.setdefault(key, []).append(float(value > 0.5))
        rate = {key: sum(group) / len(group) for key, group in groups.items()}
        return [
            value if value is not None and self.low <= rate[key] <= self.high else None
            for key, value in zip(keys, values, strict=True)
        ]
