"""How the sections of `benchmarks.architecture` measure and what they report."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Row:
    """One line of the table.

    Args:
        claim: What was measured, with its sizes.
        peer: What it was measured against, in the same run.
        value: The figure, in `unit`.
        bar: The figure to reach; None: stated, not judged.
        at_most: The bar is an upper limit.
        unit: "x" for ratios (peer's time over ours, unless the claim says otherwise).
        note: The absolute figures behind the ratio.
        error: Largest absolute difference between the results of the two, checked before timing; None: not applicable.
    """

    claim: str
    peer: str
    value: float
    bar: float | None = None
    at_most: bool = False
    unit: str = "x"
    note: str = ""
    error: float | None = None

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return ""
        return "met" if (self.value <= self.bar if self.at_most else self.value >= self.bar) else "MISSED"


def medians(functions: dict[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Median seconds of each function, after one call to warm up. The repeats are interleaved, so that a busy moment
    of the machine falls on all of them."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
