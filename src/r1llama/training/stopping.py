"""How a run ends before its time: with one message, an exit status, and its newest checkpoint intact."""

import contextlib
import errno
import logging
import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback

from r1llama.training.checkpoint import DRAFTS, checkpoints

log = logging.getLogger("r1llama")

DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ECHO_SECONDS = 1.0
LARGEST_WEIGHT = 1e4  # no trained model comes near it
DISK_WORDS = (
    "No space left",
    "os error 28",
    "quota exceeded",
    "File too large",
    "os error 27",
    "file write failed",
    "iostream error",
)


class RunStopped(RuntimeError):
    """A run that ended before its time. The message says why, and what to do.

    Args:
        message: For the user.
        status: The process's exit status.
        of_all: Every process ends so, and one of them says it.
    """

    def __init__(self, message: str, status: int = 1, of_all: bool = False):
        super().__init__(message)
        self.status, self.of_all = status, of_all


class StopSignals(TrainerCallback):
    """SIGTERM (a scheduler's preemption) and SIGINT (Ctrl-C) end the run after the optimizer step under way, with a
    checkpoint; a second one, later than the launcher's own echo of the first, ends it at once. Takes the place of
    transformers' `enable_jit_checkpoint`, which may save in the middle of a step.

    Use it as a context manager around `trainer.train()`. `received` is the signal, or None.
    """

    def __init__(self):
        self.received: int | None = None
        self.time = 0.0
        self.before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) != signal.SIG_IGN:  # as shells start jobs in the background
                    self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.received:
            if time.monotonic() - self.time > ECHO_SECONDS:
                self.__exit__()
                os.kill(os.getpid(), number)
            return
        self.received, self.time = number, time.monotonic()
        log.warning("%s: stopping after this step, with a checkpoint", signal.Signals(number).name)

    def on_step_end(self, args, state, control, **kwargs):
        received = self.received or 0
        if args.world_size > 1:  # all save together, even if the signal reached only one
            received = int(reduce(torch.tensor(float(received), device=args.device), "sum").item())
        if received:
            self.received = self.received or signal.SIGTERM
            control.should_save = control.should_training_stop = True


@contextlib.contextmanager
def disk_watched(output_dir: Path, doing: str):
    """Turn what a full disk does into one message, and clear an unfinished save away."""
    try:
        yield
    except RunStopped:
        raise  # by a save within this one
    except Exception as error:
        if not _is_disk(error):
            raise
        shutil.rmtree(output_dir / DRAFTS, ignore_errors=True)
        saved = next((folder.name for _, folder in checkpoints(output_dir)), None)
        raise RunStopped(
            f"{doing}: no space for it on the disk of {output_dir} ({shutil.disk_usage(output_dir).free / 2**20:.0f} "
            f"MiB free now). {saved or 'No earlier checkpoint'} is whole: free some space, or point `output_dir` of a "
            f"copy elsewhere, and run the same command again"
        ) from error


def _is_disk(error: BaseException | None) -> bool:
    """Also where a library wrapped the system's error into its own."""
    while error is not None:
        if getattr(error, "errno", None) in DISK_ERRNOS or any(words in str(error) for words in DISK_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def why_not_finite(model, what: str, args, step: int) -> str:
    """The message for a loss or a gradient that is not a finite number.

    Args:
        model: The model, whose weights are looked at.
        what: Such as `the loss is nan`.
        args: The training arguments.
        step: The optimizer step under way, from 1.
    """
    sizes = {
        name: p.detach().abs().max().nan_to_num(math.inf).item() for name, p in model.named_parameters() if p.numel()
    }
    name = max(sizes, key=sizes.get)
    if sizes[name] > LARGEST_WEIGHT and step == 1:
        cause = f"the model came with broken weights: {name} holds {sizes[name]:.3g}"
    elif sizes[name] > LARGEST_WEIGHT:
        cause = (
            f"an update before broke the weights, {name} holds {sizes[name]:.3g}: lower `learning_rate: "
            f"{args.learning_rate}`, warm up longer, or clip (`max_grad_norm: {args.max_grad_norm}`)"
        )
    elif "loss" in what:
        precision = "fp16 overflows above 65504: use `bf16`" if args.fp16 else f"`learning_rate: {args.learning_rate}`"
        cause = (
            "the weights are sound, so this batch did it: rows without one labelled token, a loss or reward that "
            f"divides by zero, or logits that overflow ({precision})"
        )
    else:
        cause = f"the loss is finite but its gradient overflows: lower `learning_rate: {args.learning_rate}`"
    saved = next((folder.name for _, folder in checkpoints(args.output_dir)), None)
    return f"step {step}: {what}. Nothing was saved after it. Likely cause: {cause}. " + (
        f"{saved} is from before it: resume from it, or start from its weights with another optimizer "
        f"(`model_name_or_path: {Path(args.output_dir) / saved}` and another `output_dir`)"
        if saved
        else "There is no checkpoint yet"
    )
