"""What rewards tell besides their value: per-sample records, rates per batch, and the cause when training is stuck."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .text import Completion, completion_text, prompt_text

if TYPE_CHECKING:
    from .accuracy import Grade

NO_ANSWER = frozenset(
    {"empty", "malformed_tags", "contradictory", "negated", "hedged", "echo", "ambiguous", "no_answer", "too_long"}
)
UNFINISHED = frozenset({"unfinished_think", "unfinished_answer"})
MARKED = frozenset({"answer_tag", "boxed", "hashes"})


def zero_variance_rate(rewards: Sequence[float | None], prompts: Sequence[Completion] | None) -> float | None:
    """Return the share of prompts whose completions all got the same reward; None without prompts.

    Such a group has no advantage and teaches nothing.
    """
    if prompts is None:
        return None
    groups: dict[str, list[float]] = {}
    for prompt, reward in zip(prompts, rewards, strict=True):
        if reward is not None:
            key = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
            groups.setdefault(key, []).append(reward)
    sizes = [group for group in groups.values() if len(group) > 1]
    return sum(max(group) == min(group) for group in sizes) / len(sizes) if sizes else None


def rates(grades: Sequence["Grade"], prompts: Sequence[Completion] | None = None) -> dict[str, float]:
    """Return the rates of one batch, each between 0 and 1.

    Keys: "parse_failure_rate" (no answer that counts), "truncation_rate" (thoughts or answer never closed),
    "timeout_rate" (algebra was stopped), "unjudged_rate" (None), "disagreement_rate" (right only by the lenient
    reading), "zero_variance_rate" (where prompts are known).
    """
    total = max(1, len(grades))
    found = {
        "parse_failure_rate": sum(g.answer.reason in NO_ANSWER for g in grades) / total,
        "truncation_rate": sum(g.answer.reason in UNFINISHED for g in grades) / total,
        "timeout_rate": sum(g.reason in ("timeout", "not_in_time") for g in grades) / total,
        "unjudged_rate": sum(g.reward is None for g in grades) / total,
        "disagreement_rate": sum(g.reward == 1.0 and g.answer.source not in MARKED for g in grades) / total,
    }
    flat = zero_variance_rate([g.reward for g in grades], prompts)
    return found if flat is None else {**found, "zero_variance_rate": flat}


def report(
    name: str,
    grades: Sequence["Grade"],
    prompts: Sequence[Completion] | None,
    log_extra: Callable[[str, list], None] | None,
    log_metric: Callable[[str, float], None] | None,
) -> None:
    """Hand the records and rates of one batch to TRL's callables; the columns start with `name`."""
    if log_extra is not None:
        log_extra(f"{name}/answer", [g.answer.value or "" for g in grades])
        log_extra(f"{name}/gold", [g.gold for g in grades])
        log_extra(f"{name}/reason", [g.reason for g in grades])
        log_extra(f"{name}/ms", [round(g.milliseconds, 3) for g in grades])
    if log_metric is not None:
        for key, value in rates(grades, prompts).items():
            log_metric(f"{name}/{key}", value)


def diagnose(
    rewards: Sequence[float | None],
    completions: Sequence[Completion],
    *,
    prompts: Sequence[Completion] | None = None,
    lengths: Sequence[int] | None = None,
    max_completion_length: int | None = None,
    reasons: Sequence[str] | None = None,
) -> list[str]:
    """Name the likely causes when rewards do not move.

    Args:
        rewards: of the last batches, one per completion.
        completions: the same completions.
        prompts: their prompts; shows a pre-filled `<think>` and groups.
        lengths: tokens per completion.
        max_completion_length: the limit in tokens.
        reasons: the `.../reason` column of an accuracy reward.

    Returns:
        one sentence per cause, the most certain first; empty when the rewards vary.
    """
    judged = [r for r in rewards if r is not None]
    if not completions:
        return []
    if not judged:
        return ["every reward is None: no solution could be read; check the solution column"]
    if max(judged) - min(judged) > 1e-6:
        flat = zero_variance_rate(rewards, prompts)
        if flat is not None and flat > 0.9:
            return [f"{_percent(flat)} of the groups have equal rewards and no advantage: "
                    "the prompts are too easy or too hard, or num_generations is too small"]  # fmt: skip
        return []
    level, causes = judged[0], []
    texts = [completion_text(c) for c in completions]
    if level > 0:
        return [f"every reward is {level:g}: the task is solved or the reward is exploited; read some completions"]
    open_thoughts = _share(texts, lambda t: "</think>" not in t)
    starts = any("<think>" in t for t in texts) or any(
        prompt_text(p).rstrip().endswith("<think>") for p in prompts or ()
    )
    at_limit = 0.0
    if lengths and max_completion_length:
        at_limit = _share(lengths, lambda n: n >= max_completion_length)
    if starts and open_thoughts > 0.5:
        cause = f"{_percent(open_thoughts)} of completions have no </think>"
        if lengths and max_completion_length:
            mean = sum(lengths) / len(lengths)
            cause += f": max_completion_length is {max_completion_length} and the mean is {mean:.0f}"
        causes.append(cause)
    elif at_limit > 0.5:
        causes.append(f"{_percent(at_limit)} of completions reach max_completion_length ({max_completion_length})")
    if _share(texts, lambda t: not t.strip()) > 0.5:
        causes.append("most completions are empty: check the chat template and the stop tokens")
    if not starts and open_thoughts < 0.5:
        causes.append("completions close a </think> that they never open: the template pre-fills it, which a reward "
                      "for chat messages cannot see; pass prefilled=True")  # fmt: skip
    elif not starts:
        causes.append("no completion contains <think>: the tags may be special tokens, which TRL's decoding drops, "
                      "or the prompt does not ask for them")  # fmt: skip
    if reasons:
        (reason, count), *_ = Counter(reasons).most_common(1)
        if count / len(reasons) > 0.3:
            causes.append(f"{_percent(count / len(reasons))} of the verdicts are {reason!r}")
    return causes or [
        "every reward is 0: the answers are well formed and wrong; start from easier prompts or from SFT"
    ]


def _share(items: Sequence[Any], test: Callable[[Any], bool]) -> float:
    return sum(map(test, items)) / max(1, len(items))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
