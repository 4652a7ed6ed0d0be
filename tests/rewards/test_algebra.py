"""Computer algebra keeps its clock from any thread, survives its workers, and never blocks the rest of a batch."""

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from r1llama.rewards import AccuracyReward, algebra
from r1llama.rewards.combinators import WeightedReward

HONEST = [(r"\boxed{x^2+2x+1}", "(x+1)^2"), (r"\boxed{\frac{\pi}{2}+1}", r"1+\pi/2"), (r"\boxed{x^2}", "x^3")]
# Refused before algebra, and others that only the clock stops.
HOSTILE = [
    r"\boxed{9^{9^{9^{9}}}}",
    r"\boxed{(10^9)!}",
    r"\boxed{3^{100000000}}",
    r"\boxed{" + "{" * 500_000 + "}" * 500_000 + "}",
    r"\boxed{" + "(" * 900 + "x",
    r"\boxed{\ud800}",
    r"\boxed{(x+\pi)^{9999}+x}",
    r"\boxed{(x+\pi)^{9998}(x+e)^{9997}}",
    r"\boxed{\sin(\cos(\sin(\cos(x^{9999}+\pi)^{9999})^{9999})^{9999})}",
    r"\boxed{((x^{999})^{999})^{999}+\pi}",
    "answer is not " * 5_000,
    "a" * 300_000 + "!",
    "1," * 100_000,
]


def test_verdicts_are_symmetric_here(fresh_workers):
    pairs = [("x^2+2x+1", "(x+1)^2"), (r"\frac{\pi}{2}", r"\pi/2"), (r"2\sqrt3", r"\sqrt{12}"), ("y=2x+1", "2x-y+1=0")]
    assert all(v.correct for v in algebra.compare(pairs + [(b, a) for a, b in pairs]))


@pytest.mark.parametrize("in_thread", [False, True])
def test_hostile_batch_keeps_the_clock_and_grades_the_others(fresh_workers, in_thread):
    algebra.compare([("x+1", "1+x")])  # start-up has a test of its own
    reward = AccuracyReward(timeout=2.5)
    completions = [c for c, _ in HONEST] + HOSTILE
    golds = [g for _, g in HONEST] + [r"\frac{\pi}{7}+x"] * len(HOSTILE)

    def grade():
        start = time.monotonic()
        return reward(completions, golds), time.monotonic() - start

    if in_thread:
        with ThreadPoolExecutor(1) as pool:
            values, seconds = pool.submit(grade).result()
    else:
        values, seconds = grade()
    assert seconds < 3.0
    assert values[:3] == [1.0, 1.0, 0.0]
    assert not any(values[3:])


def test_what_hangs_is_killed_and_the_rest_is_decided(fresh_workers):
    algebra.compare([("x+1", "1+x")])
    towers = [("9^{9^{9^{9}}}", r"\pi"), ("(10^9)!", r"\pi"), ("3^{100000000}", r"\pi"), ("((9!)!)!", r"\pi")]
    start = time.monotonic()
    verdicts = algebra.compare([*towers, (r"1+\pi", r"\pi+1"), (r"\frac{x}{2}", "0.5x")], timeout=2.5)
    assert time.monotonic() - start < 3.0
    assert [v.correct for v in verdicts[4:]] == [True, True]
    assert all(v.correct is not True for v in verdicts[:4])
    assert algebra.compare([("x+11", "11+x")])[0].correct


def test_start_up_counts_against_the_clock(fresh_workers):
    start = time.monotonic()
    (verdict,) = algebra.compare([("x+2", "2+x")], timeout=0.05)
    assert time.monotonic() - start < 0.5
    assert verdict.correct in (None, True)  # the model is not punished for our start-up


def test_killed_workers_are_replaced(fresh_workers):
    assert algebra.compare([("x+3", "3+x")])[0].correct
    for pool in algebra._pools.values():
        for worker in pool.idle:
            os.killpg(worker.process.pid, signal.SIGKILL)
    assert algebra.compare([("x+4", "4+x"), ("x+5", "x+6")]) == [(True, "algebra"), (False, "algebra")]


def test_threads_share_the_workers(fresh_workers):
    pairs = [[(f"x+{i}+{j}", f"{i + j}+x") for j in range(4)] for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda p: algebra.compare(p, timeout=60.0), pairs))
    assert all(v.correct for result in results for v in result)


def test_an_event_loop_goes_on_beside_it(fresh_workers):
    """As in a notebook (called while a loop runs) and in asynchronous rollouts (awaited in threads)."""
    reward, pairs = AccuracyReward(timeout=60.0), [(rf"\boxed{{x+{i}}}", f"{i}+x") for i in range(4)]

    async def main():
        ticks = 0
        here = reward([c for c, _ in pairs], [g for _, g in pairs])
        waiting = asyncio.gather(*(asyncio.to_thread(reward, [c], [g + "+0"]) for c, g in pairs))
        while not waiting.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return here, await waiting, ticks

    here, there, ticks = asyncio.run(main())
    assert here == [1.0] * 4
    assert there == [[1.0]] * 4
    assert ticks


def test_an_asynchronous_part_of_a_combination_is_awaited_inside_a_loop():
    async def slow(completions, **kwargs):
        await asyncio.sleep(0)
        return [0.5] * len(completions)

    async def main():
        return WeightedReward([slow, "accuracy"])(completions=["42"], solution=["42"])

    assert asyncio.run(main()) == [1.5]


def test_ranks_have_workers_of_their_own(fresh_workers):
    """As DeepSpeed's ranks: several processes of one machine, each with a pool, while this one has workers too."""
    assert algebra.compare([("x+12", "12+x")])[0].correct
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map(_graded_in_a_rank, range(2), chunksize=1)
    assert [value for value, _ in results] == [[1.0, 0.0]] * 2
    workers = {w.process.pid for pool in algebra._pools.values() for w in pool.idle}
    assert not workers & set().union(*(pids for _, pids in results))
    assert algebra.compare([("x+13", "13+x")])[0].correct  # and ours outlive them


def _graded_in_a_rank(rank):
    values = AccuracyReward(timeout=60.0, workers=1)([r"\boxed{y+1}", r"\boxed{y+2}"], ["1+y", "1+y"])
    pids = {w.process.pid for pool in algebra._pools.values() for w in pool.idle}
    algebra.shutdown()
    return values, pids


def test_nothing_starts_before_it_is_needed(fresh_workers):
    AccuracyReward()(["The answer is 42.", "41"], ["42", "42"])
    assert not algebra._pools
    assert threading.active_count() < 20


def test_no_worker_is_left_behind(fresh_workers):
    algebra.compare([("x+10", "10+x")])
    processes = [w.process for pool in algebra._pools.values() for w in pool.idle]
    algebra.shutdown()
    assert processes
    assert all(p.poll() is not None for p in processes)
