"""Arithmetic chains: a reasoning task that needs no download.

A problem is a chain such as `3+5-6+7-9=`: different digits, added and subtracted, with every running total a digit
too. A small model cannot find the answer in one go, but it can learn to write the running totals down.

- `make_problems`: rows with `prompt` and `solution`, of the train or the test split
- `worked_completion`, `short_completion`: two ways to answer, both right
- `make_demonstrations`: rows with `prompt` and `completion` for supervised fine-tuning

The grader is `r1llama.rewards.accuracy_reward`, which compares numbers.
"""

import hashlib
import random
import re

MAX_TOTAL = 9
MIN_STEPS, MAX_STEPS = 4, 6  # additions and subtractions in a chain
TEST_SHARE = 16  # one chain in 16 belongs to the test split
MAX_PROBLEMS = 25_000  # a larger draw would run out of new chains of four steps: there are 10,590


def split_of(prompt: str) -> str:
    """Split of a problem, "train" or "test": its own property, so that the splits are disjoint whatever the seeds."""
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] % TEST_SHARE == 0 else "train"


def make_problems(count: int, split: str, seed: int) -> list[dict[str, str]]:
    """Draw different problems of one split; the same arguments give the same problems.

    Args:
        count: number of problems.
        split: "train" or "test".
        seed: seed of the draw.

    Returns:
        Rows `{"prompt": "3+5-6+7-9=", "solution": "0"}`. The number of steps is uniform over `MIN_STEPS` to
        `MAX_STEPS`.

    Raises:
        ValueError: `split` is neither "train" nor "test", or `count` is above `MAX_PROBLEMS` (for "test",
            `MAX_PROBLEMS / TEST_SHARE`).
    """
    if split not in ("train", "test"):
        raise ValueError(f'split={split!r}: must be "train" or "test"')
    limit = MAX_PROBLEMS if split == "train" else MAX_PROBLEMS // TEST_SHARE
    if count > limit:
        raise ValueError(f"count={count}: draw at most {limit} {split} problems")
    rng = random.Random(seed)
    solutions: dict[str, str] = {}
    while len(solutions) < count:
        numbers = _draw_chain(rng, rng.randint(MIN_STEPS, MAX_STEPS))
        prompt = f"{numbers[0]}" + "".join(f"{number:+d}" for number in numbers[1:]) + "="
        if split_of(prompt) == split:
            solutions[prompt] = str(sum(numbers))
    return [{"prompt": prompt, "solution": solution} for prompt, solution in solutions.items()]


def _draw_chain(rng: random.Random, steps: int) -> list[int]:
    while True:
        # Different digits: each one tells which step comes next, so the chain can be read by looking digits up.
        numbers = rng.sample(range(1, 10), steps + 1)
        for i in range(1, len(numbers)):
            total = sum(numbers[:i])
            signed = [n for n in (numbers[i], -numbers[i]) if 0 <= total + n <= MAX_TOTAL]
            if not signed:
                break
            numbers[i] = rng.choice(signed)
        else:
            return numbers


def worked_completion(prompt: str) -> str:
    """Completion that writes every running total: `<think>3+5=8-6=2</think><answer>2</answer>` for `3+5-6=`."""
    first, *changes = _numbers(prompt)
    total, thought = first, str(first)
    for change in changes:
        total += change
        thought += f"{change:+d}={total}"
    return f"<think>{thought}</think><answer>{total}</answer>"


def short_completion(prompt: str) -> str:
    """Completion that jumps to the answer: `<think>=2</think><answer>2</answer>` for `3+5-6=`."""
    total = sum(_numbers(prompt))
    return f"<think>={total}</think><answer>{total}</answer>"


def _numbers(prompt: str) -> list[int]:
    return [int(number) for number in re.findall(r"[+-]?\d+", prompt)]


def make_demonstrations(problems: list[dict[str, str]], worked_share: float, seed: int) -> list[dict[str, str]]:
    """Give each problem one right completion: worked with probability `worked_share`, else short.

    Returns:
        Rows `{"prompt": ..., "completion": ...}` in the order of `problems`.
    """
    rng = random.Random(seed)
    rows = []
    for problem in problems:
        complete = worked_completion if rng.random() < worked_share else short_completion
        rows.append({"prompt": problem["prompt"], "completion": complete(problem["prompt"])})
    return rows
