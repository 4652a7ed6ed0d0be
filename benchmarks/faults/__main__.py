"""What a run survives: `python -m benchmarks.faults [--quick] [--stages sft grpo] [--json FILE]`.

For each stage, against one uninterrupted run:

- kills: SIGKILL, half at random moments of the run, half while something is being saved; then the same command again,
  until it ends well. After each kill every checkpoint must be whole, the output directory must hold the final model or
  none, and the next run must begin at the last save or later ("lost": steps between the two).
- corruptions: one file of the newest checkpoint is changed (a flipped bit, cut short, emptied, deleted); the next run
  must say so, begin at the one before, and keep the damaged one.
- disk: it fills up while a checkpoint is written, and while the final model is; the run must end with one message, and
  after space is freed the same command must finish. Needs root, to mount a small disk in memory.

"equal": the final weights that are, bit for bit, those of the uninterrupted run. A fork per run: one CPU process each.
"""

import argparse
import collections
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from tqdm import tqdm
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.llama import modeling_llama  # noqa: F401  (imported once, before the forks)

from benchmarks.faults.runs import Run, digest, unreadable
from benchmarks.faults.stages import RECIPES, STEPS, Stage, stages, write_inputs
from r1llama.training import distill, grpo, improve, pretrain, teacher, verifier  # noqa: F401
from r1llama.training.checkpoint import checkpoints

DISK = 320 * 2**20  # bytes; a run wants 200 MiB free before it begins
DAMAGES = ("flipped bit", "cut short", "emptied", "deleted")


class InSave:
    """True once the `nth` save, from 0, has been under way for `delay` seconds."""

    def __init__(self, run: Run, nth: int, delay: float):
        self.run, self.left, self.delay = run, nth + 1, delay
        self.is_saving, self.since = False, float("inf")

    def __call__(self) -> bool:
        was_saving, self.is_saving = self.is_saving, self.run.is_saving()
        if self.is_saving and not was_saving:
            self.left -= 1
            if self.left == 0:
                self.since = time.monotonic()
        return time.monotonic() > self.since + self.delay


def is_past(run: Run, seconds: float) -> bool:
    return run.seconds > seconds


def kills(stage: Stage, folder: Path, reference: str, seconds: float, count: int, chance: random.Random) -> dict:
    """Kill runs, and start them again, until `count` kills are done and the last run has ended well."""
    row = collections.Counter(
        {"kills": 0, "in a save": 0, "resumed": 0, "lost steps": 0, "unreadable": 0, "runs": 0, "runs equal": 0}
    )
    while row["kills"] < count:
        trial, saved = folder / f"kills-{row['runs']}", 0
        while True:
            run = Run(stage, trial)
            if chance.random() < 0.5:
                moment = InSave(run, chance.randrange(STEPS + 1), chance.uniform(0, 0.03))
            else:
                moment = partial(is_past, run, chance.uniform(0, seconds))
            is_killed = row["kills"] < count and run.watch(moment)
            if is_killed:
                row["in a save"] += run.is_saving()
                run.kill()
                row["kills"] += 1
            status, began = run.wait(), run.resumed_at()
            if began is not None:
                row["lost steps"] += max(saved - began, 0)
                row["resumed"] += began > 0
            saved = max(saved, run.newest_saved())
            for problem in unreadable(run, reference):
                row["unreadable"] += 1
                print(f"  {trial.name}: {problem}", flush=True)
            if not is_killed:
                break
        row["runs"] += 1
        row["runs equal"] += digest(run.out) == reference
        if status or digest(run.out) != reference:
            print(f"  {trial.name}: status {status}, {run.said[-1500:]}", flush=True)
        else:
            shutil.rmtree(trial)
    return dict(row)


def damage(folder: Path, how: str, chance: random.Random) -> str:
    """Change one file of a checkpoint; its name."""
    path = chance.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size))
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "cut short":
        path.write_bytes(content[: chance.randrange(1, len(content))])
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    return path.name


def corruptions(stage: Stage, folder: Path, reference: str, count: int, chance: random.Random) -> dict:
    """Damage the newest checkpoint of a run that was cut off, `count` times."""
    cut = Run(stage, folder / "cut")
    cut.watch(lambda: cut.newest_saved() >= STEPS - 1)
    cut.kill()
    row = collections.Counter({"corruptions": count, "passed over": 0, "kept": 0, "then equal": 0})
    for index in range(count):
        trial = folder / f"corrupt-{index}"
        shutil.copytree(folder / "cut", trial)
        step, newest = checkpoints(trial / "out" / stage.trained_in)[0]
        name = damage(newest, DAMAGES[index % len(DAMAGES)], chance)
        run = Run(stage, trial)
        status = run.wait()
        row["passed over"] += f"passed over checkpoint-{step}: " in run.said and run.resumed_at() == step - 1
        row["kept"] += newest.with_name(f"checkpoint-{step}.aside").is_dir()
        row["then equal"] += digest(run.out) == reference
        if status or digest(run.out) != reference:
            print(f"  {trial.name}, {name} {DAMAGES[index % len(DAMAGES)]}: {run.said[-1500:]}", flush=True)
        else:
            shutil.rmtree(trial)
    return dict(row)


def full_disk(stage: Stage, folder: Path, reference: str) -> dict:
    """Fill the disk at the second checkpoint, and at the final save."""
    row = {"full disks": 2, "one message": 0, "earlier whole": 0, "equal after": 0}
    for at in (1, STEPS):
        disk = folder / f"disk-{at}"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], check=True)
        try:
            run = Run(stage, disk, save_total_limit=None)  # no old checkpoint makes room
            run.watch(lambda run=run, at=at: run.newest_saved() >= at)
            os.kill(run.pid, signal.SIGSTOP)
            with open(disk / "filler", "wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(disk).free - 2**14)
            os.kill(run.pid, signal.SIGCONT)
            status = run.wait()
            row["one message"] += status == 1 and "no space for it" in run.said and "Traceback" not in run.said
            row["earlier whole"] += not unreadable(run, reference) and run.newest_saved() >= at
            if "no space for it" not in run.said or "Traceback" in run.said:
                print(f"  disk full at {at}: status {status}, {run.said[-1500:]}", flush=True)
            (disk / "filler").unlink()
            run = Run(stage, disk, save_total_limit=None)
            run.wait()
            row["equal after"] += digest(run.out) == reference
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return row


def measure(stage: Stage, folder: Path, quick: bool, seed: int) -> dict:
    chance = random.Random(seed)
    start = time.monotonic()
    for name in ("first", "whole"):  # the first also fills the caches
        run = Run(stage, folder / name)
        if run.wait():
            raise SystemExit(f"{stage.name} does not run: {run.said[-3000:]}")
    seconds, reference = run.seconds, digest(run.out)
    row = {"stage": stage.name, "steps": STEPS, "seconds a run": round(seconds, 2)}
    row |= kills(stage, folder, reference, seconds, 4 if quick else 50, chance)
    row |= corruptions(stage, folder, reference, 4 if quick else 20, chance)
    if os.geteuid() == 0:
        row |= full_disk(stage, folder, reference)
    return row | {"seconds": round(time.monotonic() - start)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four kills and four corruptions a stage")
    parser.add_argument("--stages", nargs="+", choices=RECIPES, default=list(RECIPES), help="only these")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the damages")
    parser.add_argument("--json", help="write the table here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    get_checkpoint_conversion_mapping("llama")  # a table, made once
    tqdm.set_lock(threading.RLock())  # its own lock is one for all forks, and a killed one never gives it back
    gc.freeze()  # the forks' garbage collection need not walk through all that was imported
    rows = []
    with tempfile.TemporaryDirectory(prefix="r1llama-faults-") as name:
        inputs = Path(name)
        write_inputs(inputs)
        for stage in arguments.stages:
            folder = inputs / "runs" / stage
            folder.mkdir(parents=True)
            rows.append(measure(stages(inputs)[stage], folder, arguments.quick, arguments.seed))
            print("   ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
            if arguments.json:
                Path(arguments.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
