"""Code rewards: the share of hidden tests that a model's Python program passes, in the sandbox."""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import sandbox
from .format import format_reward
from .text import Completion, completion_text

_BLOCK = re.compile(r"^```[ \t]*(?:python3?|py)[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE)


def extract_code(text: str) -> str:
    """Return the last complete ```python block after the thoughts, or "" when there is none."""
    if "<think>" in text and "</think>" not in text:
        return ""
    blocks = _BLOCK.findall(text.rpartition("</think>")[2])
    return blocks[-1] if blocks else ""


def same_output(output: str, expected: str) -> bool:
    """Compare all lines, without outer white space; trailing empty lines do not count."""
    ours, theirs = ([line.strip() for line in text.strip().splitlines()] for text in (output, expected))
    return ours == theirs


class CodeReward:
    """The share of test cases passed, or 1.0 for all and else 0.0; None without test cases.

    The column `verification_info` holds, per row, a mapping (or its JSON) with "test_cases": each has "input" and
    "output", and either "type" "stdin_stdout" or a "fn_name" to call with the JSON list of arguments "input". The
    format is that of open-r1's datasets. The expected output never enters the sandbox.

    Args:
        partial: credit per test; False pays only for all of them.
        timeout: seconds of wall clock per test.
        memory: megabytes per test.
        workers: programs that run at once.
        max_tests: tests per program that are run, the first ones.
        unsafe: run programs even where the system cannot isolate them.

    Raises:
        SandboxUnavailableError: when built on a system that cannot isolate programs, unless `unsafe`.
    """

    def __init__(
        self,
        partial: bool = True,
        timeout: float = 5.0,
        memory: int = 512,
        workers: int = 4,
        max_tests: int = 32,
        unsafe: bool = False,
    ):
        if not unsafe:
            sandbox.layers()
        self.partial, self.timeout, self.memory = partial, timeout, memory
        self.workers, self.max_tests, self.unsafe = workers, max_tests, unsafe
        self.__name__ = "code_reward" if partial else "binary_code_reward"

    def __call__(
        self,
        completions: Sequence[Completion],
        verification_info: Sequence[Mapping[str, Any] | str],
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs,
    ) -> list[float | None]:
        programs = [extract_code(completion_text(c)) for c in completions]
        tests = [self._tests(info) for info in verification_info]
        jobs = [(i, test) for i, cases in enumerate(tests) for test in cases if programs[i].strip()]
        with ThreadPoolExecutor(max_workers=self.workers) as pool:
            outcomes = list(pool.map(lambda job: self._passes(programs[job[0]], job[1]), jobs))
        passed: list[list[bool]] = [[] for _ in programs]
        statuses: list[list[str]] = [[] for _ in programs]
        for (i, _), (right, status) in zip(jobs, outcomes, strict=True):
            passed[i].append(right)
            statuses[i].append(status)
        rewards: list[float | None] = []
        for cases, results in zip(tests, passed, strict=True):
            share = sum(results) / len(cases) if cases else None
            rewards.append(share if share is None or self.partial else float(share == 1.0))
        name = self.__name__.removesuffix("_reward")
        if log_extra is not None:
            log_extra(
                f"{name}/status",
                [" ".join(s) if p.strip() else "no_code" for p, s in zip(programs, statuses, strict=True)],
            )
        if log_metric is not None:
            log_metric(f"{name}/no_code_rate", sum(not p.strip() for p in programs) / max(1, len(programs)))
            log_metric(f"{name}/timeout_rate", sum(s == "timeout" for _, s in outcomes) / max(1, len(outcomes)))
        return rewards

    def _tests(self, info: Mapping[str, Any] | str | None) -> list[Mapping[str, Any]]:
        known = json.loads(info) if isinstance(info, str) else info
        if not known:
            return []
        if known.get("language", "python") != "python":
            raise ValueError(f"code rewards run Python, not {known['language']!r}: filter the dataset")
        return list(known.get("test_cases") or [])[: self.max_tests]

    def _passes(self, program: str, test: Mapping[str, Any]) -> tuple[bool, str]:
        limits: dict[str, Any] = {"timeout": self.timeout, "memory": self.memory, "unsafe": self.unsafe}
        if test.get("fn_name"):
            given = test["input"]
            arguments = json.loads(given) if isinstance(given, str) else given
            result = sandbox.run(program, call=test["fn_name"], arguments=list(arguments), **limits)
            right = result.status == "ok" and _same_value(result.output, test["output"])
        else:
            result = sandbox.run(program, str(test["input"]), **limits)
            right = result.status == "ok" and same_output(result.output, str(test["output"]))
        return right, "passed" if right else "wrong" if result.status == "ok" else result.status


def _same_value(output: str, expected: Any) -> bool:
    try:
        got = json.loads(output.rpartition("\n")[2])
    except ValueError:
        return False
    if isinstance(expected, str):
        with contextlib.suppress(ValueError):  # a bare word is the expected string itself
            expected = json.loads(expected)
    return type(got) is type(expected) and got == expected


class AsyncCodeReward(CodeReward):
    """`CodeReward` that TRL awaits beside other asynchronous rewards."""

    async def __call__(  # type: ignore[override]
        self, completions: Sequence[Completion], verification_info: Sequence[Mapping[str, Any] | str], **kwargs
    ) -> list[float | None]:
        return await asyncio.to_thread(super().__call__, completions, verification_info, **kwargs)


class CodeFormatReward:
    """1.0 for think/answer format whose answer holds one complete ```python block, else 0.0."""

    __name__ = "code_format_reward"

    def __call__(
        self, completions: Sequence[Completion], prompts: Sequence[Completion] | None = None, **kwargs
    ) -> list[float | None]:
        formats = format_reward(completions, prompts=prompts)
        texts = [completion_text(c).rpartition("<answer>")[2].partition("</answer>")[0] for c in completions]
        return [
            float(bool(f) and extract_code(t.strip() + "\n").strip() != "")
            for f, t in zip(formats, texts, strict=True)
        ]


code_format_reward = CodeFormatReward()
