"""Computer algebra in processes that can be killed, with a wall clock that holds from any thread.

math-verify's own timeout is an alarm signal: it works in the main thread only, and not while sympy holds the
interpreter. Here every comparison runs in a worker process (`algebra_worker`). Nothing is started before the first
comparison; workers that die are replaced; a forked child of this process starts workers of its own.
"""

import atexit
import contextlib
import json
import os
import pathlib
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence

from .grading import Verdict

TIMEOUT = 10.0  # seconds of wall clock for one batch
_SLICES = (0.6, 3.0)  # processor seconds for one comparison: at first, and again if time is left
_CACHE_SIZE = 8192


def default_workers() -> int:
    """Return the number of workers per process: `R1LLAMA_REWARD_WORKERS`, else two, or one on a single core."""
    return int(os.environ.get("R1LLAMA_REWARD_WORKERS", 0)) or min(2, os.cpu_count() or 1)


class _Worker:
    """One worker process and the pipes to it."""

    def __init__(self) -> None:
        script = pathlib.Path(__file__).with_name("algebra_worker.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # an interrupt at the keyboard is not for the workers, and killpg gets all of one
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.replies = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.child: int | None = None  # the process that answers, once it has said so
        self._buffer = b""

    def send(self, answer: str, gold: str, seconds: float) -> None:
        line = json.dumps({"answer": answer, "gold": gold, "seconds": seconds}) + "\n"
        os.write(self.requests, line.encode())

    def receive(self) -> list[dict]:
        """Return the messages that have arrived; raise `EOFError` when the worker is gone."""
        data = os.read(self.replies, 65536)
        if not data:
            raise EOFError
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    def interrupt(self) -> None:
        """Kill the answering process; its parent forks the next one."""
        if self.child is not None:
            child, self.child = self.child, None
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        self.process.wait()


class _Pool:
    """At most `size` workers, lent to batches one by one."""

    def __init__(self, size: int):
        self.size = size
        self.condition = threading.Condition()
        self.idle: list[_Worker] = []
        self.started = 0
        self.waiting = 0

    def acquire(self, deadline: float | None) -> _Worker | None:
        """Return a worker, or None when none is free: at once without a deadline, else at the deadline."""
        with self.condition:
            self.waiting += 1
            try:
                while not self.idle and self.started >= self.size:
                    left = deadline - time.monotonic() if deadline is not None else 0.0
                    if left <= 0 or not self.condition.wait(left):
                        return None
                if self.idle:
                    return self.idle.pop()
                self.started += 1
            finally:
                self.waiting -= 1
        try:
            return _Worker()
        except BaseException:
            self.discard(None)
            raise

    def release(self, worker: _Worker) -> None:
        with self.condition:
            self.idle.append(worker)
            self.condition.notify()

    def discard(self, worker: _Worker | None) -> None:
        if worker is not None:
            worker.close()
        with self.condition:
            self.started -= 1
            self.condition.notify()


_pools: dict[int, _Pool] = {}
_cache: OrderedDict[tuple[str, str], Verdict] = OrderedDict()
_lock = threading.Lock()


def _forget() -> None:
    """Start afresh in a forked child: the workers and the locks belong to the parent."""
    global _lock
    _pools.clear()
    _cache.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def shutdown() -> None:
    """End all workers of this process and forget what they found; the next comparison starts new ones."""
    with _lock:
        pools = list(_pools.values())
        _pools.clear()
        _cache.clear()
    for pool in pools:
        with pool.condition:
            idle, pool.idle = pool.idle, []
        for worker in idle:
            pool.discard(worker)


atexit.register(shutdown)


def _risk(pair: tuple[str, str]) -> int:
    # What is likely to hang goes last, so that it cannot keep the others waiting.
    return len(pair[0]) + 50 * len(re.findall(r"[\^!]|\\(?:int|sum|prod|binom|log)", pair[0]))


def compare(pairs: Sequence[tuple[str, str]], timeout: float = TIMEOUT, workers: int | None = None) -> list[Verdict]:
    """Compare (answer, gold) pairs by algebra.

    Args:
        pairs: values for which `grading.compare` could not decide.
        timeout: wall clock in seconds for all of them together.
        workers: processes to use.

    Returns:
        one `Verdict` per pair: True or False with the reason "algebra"; False with "timeout" (it took too long on
        its own), "too_large" or "unparsable"; None with "not_in_time" (the clock ran out before its turn) or
        "no_worker" (workers do not start here).
    """
    deadline = time.monotonic() + timeout
    with _lock:
        known = {pair: _cache[pair] for pair in set(pairs) if pair in _cache}
        size = workers or default_workers()
        pool = _pools.setdefault(size, _Pool(size))
    todo = sorted(set(pairs) - known.keys(), key=_risk)
    if todo:
        found = _Batch(pool, todo, deadline).run()
        known.update(found)
        with _lock:
            _cache.update({pair: verdict for pair, verdict in found.items() if verdict.correct is not None})
            while len(_cache) > _CACHE_SIZE:
                _cache.popitem(last=False)
    return [known[pair] for pair in pairs]


class _Batch:
    """One batch of comparisons, driven from the calling thread."""

    def __init__(self, pool: _Pool, pairs: Sequence[tuple[str, str]], deadline: float):
        self.pool, self.deadline = pool, deadline
        self.queue = deque((pair, 0) for pair in pairs)  # (pair, round)
        self.found = {pair: Verdict(None, "not_in_time") for pair in pairs}
        self.busy: dict[_Worker, tuple[tuple[str, str], int]] = {}
        self.workers: set[_Worker] = set()
        self.selector = selectors.DefaultSelector()
        self.failed_starts = 0

    def run(self) -> dict[tuple[str, str], Verdict]:
        try:
            while (self.queue or self.busy) and time.monotonic() < self.deadline and self.failed_starts < 3:
                self._staff()
                self._assign()
                if self.workers:
                    for key, _ in self.selector.select(max(0.0, self.deadline - time.monotonic())):
                        self._hear(key.data)
        finally:
            for worker in list(self.workers):
                if worker in self.busy:
                    worker.interrupt()
                self._drop(worker)
                self.pool.release(worker)
            self.selector.close()
        if self.failed_starts >= 3:
            for pair, _ in self.queue:
                self.found[pair] = Verdict(None, "no_worker")
        return self.found

    def _staff(self) -> None:
        for worker in [w for w in self.workers if w not in self.busy]:
            # Idle with nothing to do, or another thread waits for its turn.
            if not self.queue or (self.pool.waiting and worker.child is not None and len(self.workers) > 1):
                self._drop(worker)
                self.pool.release(worker)
        while len(self.workers) < min(self.pool.size, len(self.queue) + len(self.busy)):
            lent = self.pool.acquire(None if self.workers else self.deadline)
            if lent is None:
                return
            self.workers.add(lent)
            self.selector.register(lent.replies, selectors.EVENT_READ, lent)

    def _drop(self, worker: _Worker) -> None:
        self.workers.discard(worker)
        self.busy.pop(worker, None)
        self.selector.unregister(worker.replies)

    def _assign(self) -> None:
        for worker in list(self.workers):
            if worker.child is not None and worker not in self.busy and self.queue:
                pair, round_ = self.queue.popleft()
                try:
                    worker.send(*pair, seconds=_SLICES[round_])
                except OSError:
                    self.queue.appendleft((pair, round_))
                    self._lose(worker)
                else:
                    self.busy[worker] = (pair, round_)

    def _hear(self, worker: _Worker) -> None:
        try:
            messages = worker.receive()
        except (EOFError, OSError, ValueError):
            self._lose(worker)
            return
        for message in messages:
            if "ready" in message:
                worker.child = message["ready"]
                if worker in self.busy:  # the one before died over its work
                    self._timed_out(*self.busy.pop(worker))
            elif worker in self.busy:
                pair, _ = self.busy.pop(worker)
                self.found[pair] = Verdict(message["same"], message["reason"])

    def _timed_out(self, pair: tuple[str, str], round_: int) -> None:
        self.found[pair] = Verdict(False, "timeout")
        if round_ + 1 < len(_SLICES):
            self.queue.append((pair, round_ + 1))

    def _lose(self, worker: _Worker) -> None:
        """Replace a worker whose process is gone."""
        if worker in self.busy:
            self._timed_out(*self.busy[worker])
        elif worker.child is None:
            self.failed_starts += 1
        self._drop(worker)
        self.pool.discard(worker)
