"""How the sections of `benchmarks.training` measure: real trainers, each run in a process of its own."""

import contextlib
import io
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import TrainerCallback


@dataclass
class Run:
    """One training.

    Attributes:
        tokens_per_second: Tokens that are no padding, from the end of the first step, which warms up, to the end of
            the last.
        gib: Memory that training added: peak RSS of the process, or what tensors took on the GPU.
    """

    tokens_per_second: float
    gib: float


class _Clock(TrainerCallback):
    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        if args.device.type == "cuda":
            torch.cuda.synchronize()
            now = time.perf_counter()
        else:
            now = time.process_time()
        self.ends.append((now, state.num_input_tokens_seen))


def _train(make_trainer, device: str) -> Run:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        before = _peak(device)
        trainer = make_trainer()
        clock = _Clock()
        trainer.add_callback(clock)
        trainer.train()
    (start, first), (end, last) = clock.ends[0], clock.ends[-1]
    return Run((last - first) / (end - start), _peak(device) - before)


def _peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _child(make_trainer, device, pipe):
    pipe.send(_train(make_trainer, device))


def trainings(makers: dict[str, Callable], repeats: int, device: str = "cpu") -> dict[str, Run]:
    """Each trainer's median run. The repeats are interleaved, so that a busy moment of the machine falls on all.

    On a CPU each run is a fork of this process, whose peak memory is then its own, and seconds are those of its one
    thread, which others on the machine do not lengthen.

    Args:
        makers: Functions that make a trainer, whose `include_num_input_tokens_seen` is "non_padding".
        repeats: Runs of each.
        device: cpu or cuda.
    """
    runs: dict[str, list[Run]] = {name: [] for name in makers}
    for _ in range(repeats):
        for name, make_trainer in makers.items():
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                runs[name].append(_train(make_trainer, device))
                continue
            receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
            child = multiprocessing.get_context("fork").Process(target=_child, args=(make_trainer, device, sender))
            child.start()
            sender.close()
            runs[name].append(receiver.recv())
            child.join()
    return {
        name: Run(
            statistics.median(run.tokens_per_second for run in found), statistics.median(run.gib for run in found)
        )
        for name, found in runs.items()
    }
