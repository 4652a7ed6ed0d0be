"""Runs of a stage in processes of their own, which can be killed, and what they must leave behind.

Everything is imported once; each run is a fork of that process, which takes a second or two instead of fifteen.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from safetensors import safe_open

from benchmarks.faults.stages import Stage
from r1llama.training import stage as stage_module
from r1llama.training.checkpoint import DRAFTS, MODEL_HEADS, checkpoints, why_incomplete

POLL = 0.0005  # seconds


class Run:
    """A run of a stage under way.

    Args:
        stage: The stage.
        folder: Its recipe, its output directory `out` and its `log.txt` lie there.
        changes: Of the recipe.
    """

    def __init__(self, stage: Stage, folder: Path, **changes):
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.log = folder / "out", folder / "log.txt"
        self.trained = self.out / stage.trained_in
        self.before = self.log.stat().st_size if self.log.exists() else 0
        self.start = time.monotonic()
        self.status: int | None = None
        argv = stage.arguments(folder, **changes)
        self.pid = os.fork()
        if self.pid == 0:
            self._become(stage, argv)

    def _become(self, stage: Stage, argv: list[str]) -> None:
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = [stage.name, *argv]
        status = 1
        try:
            stage_module.run(stage.main)
            status = 0
        except SystemExit as error:
            status = error.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    @property
    def said(self) -> str:
        """What this run has logged."""
        if not self.log.exists():  # killed before it said a word
            return ""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            file.seek(self.before)
            return file.read()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def watch(self, until: Callable[[], bool]) -> bool:
        """Wait for something to become true; False if the run ended before."""
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif until():
                return True
            else:
                time.sleep(POLL)
        return False

    def wait(self) -> int:
        """The exit status."""
        self.watch(lambda: False)
        return self.status

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def newest_saved(self) -> int:
        """The step of the newest checkpoint by name; 0 if there is none."""
        return next((step for step, _ in checkpoints(self.trained)), 0)

    def is_saving(self) -> bool:
        for folder in (self.trained, self.out):
            with contextlib.suppress(FileNotFoundError):  # it comes and goes
                if os.listdir(folder / DRAFTS):
                    return True
        return False

    def resumed_at(self) -> int | None:
        """The step that it began at; None if it did not come that far."""
        if match := re.search(r"resuming from \S*checkpoint-(\d+)", self.said):
            return int(match[1])
        return 0 if "no checkpoint to resume from" in self.said else None


def digest(out: Path) -> str | None:
    """Of the final weights; None where there are none."""
    weights = out / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else None


def unreadable(run: Run, reference: str) -> list[str]:
    """What a run left, wherever it was cut off, that is there and not whole.

    Args:
        run: The run, ended.
        reference: Digest of the weights of an uninterrupted run.
    """
    out, found = run.out, []
    for _, folder in checkpoints(run.trained):
        if reason := why_incomplete(folder):
            found.append(f"{folder.name}: {reason}")
    if any((out / name).exists() for name in MODEL_HEADS):
        try:
            with safe_open(out / "model.safetensors", "pt") as file:
                list(map(file.get_tensor, file.keys()))
        except Exception as error:
            found.append(f"a config without its weights: {error}")
        if digest(out) != reference:
            found.append("a model that is not the final one")
    for name, parse in (
        ("all_results.json", json.loads),
        ("improve.json", json.loads),
        ("recipe.yaml", yaml.safe_load),
    ):
        if (out / name).exists() and not parse((out / name).read_text()):
            found.append(f"{name} is not whole")
    if any((out / name).exists() for name in ("all_results.json", "improve.json")) and digest(out) != reference:
        found.append("results without the final model")
    lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
    try:
        list(map(json.loads, lines[:-1]))  # the last may be under way
    except ValueError as error:
        found.append(f"metrics.jsonl: {error}")
    return found
