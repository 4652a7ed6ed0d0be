"""Running rewards against cases with known values: the adversarial corpus, or a file of the user's.

A case is one JSON object per line:
    id, class      names for reports
    reward         a reward spec, see `get_reward`
    completion     the text; or "pieces": [[text, times], ...] for long ones
    prompt         optional
    columns        the dataset columns of this row, e.g. {"solution": "42"}
    expect         the value, or null for "cannot be judged"
"""

import json
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .catalogue import get_reward
from .combinators import evaluate

CORPUS = pathlib.Path(__file__).with_name("corpus.jsonl")
MAX_FALSE_NEGATIVES = 0.01  # of the cases that should earn something
_SAME = 1e-6


class Outcome(NamedTuple):
    """One case, the value that its reward gave (or the exception it raised, as text), and how long it took."""

    case: dict[str, Any]
    value: float | str | None
    seconds: float

    @property
    def kind(self) -> str:
        """ "ok", "false positive" (too much), "false negative" (too little, or None for a value) or "error"."""
        expected = self.case["expect"]
        if isinstance(self.value, str):
            return "error"
        if self.value is None or expected is None:
            return "ok" if self.value is expected else "false negative" if self.value is None else "false positive"
        if abs(self.value - expected) <= _SAME:
            return "ok"
        return "false positive" if self.value > expected else "false negative"


def load_cases(path: str | pathlib.Path = CORPUS) -> list[dict[str, Any]]:
    """Read a file of cases.

    Raises:
        ValueError: a line that is no case, with its number.
    """
    cases = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                case = json.loads(line)
                if "pieces" in case:
                    case["completion"] = "".join(text * times for text, times in case.pop("pieces"))
                missing = {"reward", "completion", "expect"} - case.keys()
            except (ValueError, AttributeError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            if missing:
                raise ValueError(f"{path}, line {number}: a case needs {', '.join(sorted(missing))}")
            cases.append({"id": f"{pathlib.Path(path).stem}:{number}", "class": "case", **case})
    return cases


def run_cases(cases: Iterable[dict[str, Any]]) -> list[Outcome]:
    """Run every case by itself."""
    rewards: dict[str, Any] = {}
    outcomes = []
    for case in cases:
        key = json.dumps(case["reward"], sort_keys=True)
        if key not in rewards:
            rewards[key] = get_reward(case["reward"])
        arguments: dict[str, Any] = {name: [value] for name, value in case.get("columns", {}).items()}
        if "prompt" in case:
            arguments["prompts"] = [case["prompt"]]
        start = time.perf_counter()
        value: float | str | None
        try:
            (value,) = evaluate(rewards[key], {"completions": [case["completion"]], **arguments})
        except Exception as error:  # a reward never raises on text; here it is a finding, not a crash
            value = f"{type(error).__name__}: {error}"
        outcomes.append(Outcome(case, value, time.perf_counter() - start))
    return outcomes


class Summary(NamedTuple):
    """Counts of one group of outcomes; `slowest` in seconds with the id of the case."""

    name: str
    cases: int
    false_positives: int
    false_negatives: int
    errors: int
    positives: int
    slowest: float
    slowest_id: str

    @property
    def passed(self) -> bool:
        """No false positive, no error, and few enough false negatives."""
        bad = self.false_positives + self.errors
        return bad == 0 and self.false_negatives <= MAX_FALSE_NEGATIVES * max(1, self.positives)


def summarise(name: str, outcomes: Sequence[Outcome]) -> Summary:
    """Count one group of outcomes."""
    kinds = [outcome.kind for outcome in outcomes]
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    return Summary(
        name,
        len(outcomes),
        kinds.count("false positive"),
        kinds.count("false negative"),
        kinds.count("error"),
        sum(bool(outcome.case["expect"]) for outcome in outcomes),
        slowest.seconds,
        slowest.case["id"],
    )


def by_class(outcomes: Sequence[Outcome]) -> list[Summary]:
    """Summarise each class of cases, in the order of the file, and then all of them."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.case["class"], []).append(outcome)
    return [*(summarise(name, group) for name, group in groups.items()), summarise("all", outcomes)]
