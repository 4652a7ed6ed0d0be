"""Speed and soundness of the accuracy reward beside TRL's and math-verify's, in one run.

    python -m benchmarks.rewards [--samples N] [--peer-samples N] [--output FILE.json]

Prints two tables and writes JSON:
- throughput on GSM8K-like completions (numbers) and on answers in LaTeX, cold start not counted;
- the adversarial corpus: false positives, false negatives and crashes of each grader.
"""

import argparse
import json
import logging
import multiprocessing
import os
import pathlib
import platform
import random
import statistics
import time

from r1llama.rewards import AccuracyReward, algebra
from r1llama.rewards.audit import load_cases
from r1llama.rewards.command import table

WALL = 20.0  # seconds after which a peer that hangs on one case is killed


def gsm8k_like(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return completions and golds: worked solutions that end in the ways models end; a third is wrong."""
    draw = random.Random(seed)
    names, things = ["Natalia", "Tom", "Weng", "Julie", "Ali"], ["clips", "apples", "pages", "dollars", "miles"]
    endings = [
        "</think>\n<answer>{}</answer>",
        "</think>\nThe answer is {}.",
        "</think>\nSo the final answer is $\\boxed{{{}}}$.",
        "</think>\n#### {}",
    ]
    completions, golds = [], []
    for i in range(n):
        a, b, c = draw.randint(2, 99), draw.randint(2, 99), draw.randint(2, 30)
        who, what = draw.choice(names), draw.choice(things)
        gold = (a + b) * c
        said = gold if i % 3 else gold + draw.randint(1, 9)
        written = f"{said:,}" if i % 2 else str(said)
        work = (
            f"<think>\nFirst, {who} has {a} {what} in April and gets {b} more in May.\n"
            f"That makes {a} + {b} = <<{a}+{b}={a + b}>>{a + b} {what} in two months.\n"
            f"The same happens {c} times, so we multiply: {a + b} * {c} = {said}.\n"
            f"Let me check: {a} * {c} = {a * c} and {b} * {c} = {b * c}, and their sum is {said}.\n"
        )
        completions.append(work + endings[i % 4].format(written))
        golds.append(str(gold))
    return completions, golds


def latex_like(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return boxed answers and golds that need algebra; all different, a third is wrong."""
    draw = random.Random(seed)
    completions, golds = [], []
    for i in range(n):
        a, b, c = draw.randint(2, 999), draw.randint(2, 999), draw.randint(2, 99)
        wrong = i % 3 == 0
        answer, gold = draw.choice(
            [
                (rf"{a}x^2+{b}x+{c}", rf"{c}+{b}x+{a + wrong}x^2"),
                (rf"\frac{{{a}\pi}}{{{b}}}", rf"{a}\pi/{b + wrong}"),
                (rf"{c}\sqrt{{{a}}}", rf"\sqrt{{{a * c * c + wrong}}}"),
                (rf"\frac{{x+{a}}}{{{b}}}", rf"\frac{{1}}{{{b}}}(x+{a + wrong})"),
                (rf"({a},\sqrt{{{b}}})", rf"\left({a}, {b + wrong}^{{1/2}}\right)"),
                (rf"\{{{a}, {b}\pi\}}", rf"\{{\pi \cdot {b}, {a + wrong}\}}"),
                (rf"y={a}x+{b}", rf"{a}x-y+{b + wrong}=0"),
            ]
        )
        completions.append(f"We work it out step by step and get $\\boxed{{{answer}}}$.")
        golds.append(f"${gold}$")
    return completions, golds


def chat(completions: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": c}] for c in completions]


def trl_grader(completions: list[str], golds: list[str]) -> list[float | None]:
    from trl.rewards import accuracy_reward

    return accuracy_reward(chat(completions), solution=golds)


def math_verify_grader(completions: list[str], golds: list[str]) -> list[float | None]:
    from math_verify import parse, verify

    return [float(verify(parse(gold), parse(text))) for text, gold in zip(completions, golds, strict=True)]


def rates(graders, rounds: int) -> list[tuple[float, float]]:
    """Return samples per second (median over `rounds`, taken in turns) and the share graded as it is meant."""
    speeds: list[list[float]] = [[] for _ in graders]
    right = [0.0] * len(graders)
    for _ in range(rounds):
        for i, (_, grade, (completions, golds)) in enumerate(graders):
            start = time.perf_counter()
            values = grade(completions, golds)
            speeds[i].append(len(values) / (time.perf_counter() - start))
            right[i] = statistics.mean(v == float(row % 3 != 0) for row, v in enumerate(values))
    return [(statistics.median(s), r) for s, r in zip(speeds, right, strict=True)]


def uncached(workers: int):
    """Our reward with nothing remembered from earlier calls, the workers warm."""
    reward = AccuracyReward(timeout=600.0, workers=workers)
    reward([r"\boxed{x+1}", r"\boxed{x+2}"] * workers, ["1+x", "2+x"] * workers)

    def grade(completions, golds):
        algebra._cache.clear()
        return reward(completions, golds)

    return grade


def _serve(grader, connection) -> None:
    logging.disable(logging.CRITICAL)  # math-verify logs whole completions
    while True:
        text, gold = connection.recv()
        try:
            (value,) = grader([text], [gold])
        except BaseException as error:
            value = type(error).__name__
        connection.send(value)


def graded_one_by_one(grader, cases: list[dict]) -> list[float | str | None]:
    """Grade each case in a process of its own life, which is killed when a case takes more than `WALL` seconds."""
    context = multiprocessing.get_context("spawn")

    def start():
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(grader, theirs), daemon=True)
        process.start()
        return ours, process

    connection, process = start()
    values: list[float | str | None] = []
    for case in cases:
        try:
            connection.send((case["completion"], case["columns"]["solution"]))
            values.append(connection.recv() if connection.poll(WALL + 30 * (not values)) else "hang")
        except (EOFError, OSError):
            values.append("died")
        if values[-1] in ("hang", "died"):
            process.kill()
            process.join()
            connection, process = start()
    process.kill()
    process.join()
    return values


def ours_grader(completions: list[str], golds: list[str]) -> list[float | None]:
    from r1llama.rewards import accuracy_reward

    return accuracy_reward(completions, golds)


def soundness(grader, cases: list[dict]) -> dict[str, float | int]:
    values = graded_one_by_one(grader, cases)
    wanted = [case["expect"] for case in cases]
    failed = sum(isinstance(v, str) and v not in ("hang",) for v in values)
    pairs = [(0.0 if isinstance(v, str) else v, w) for v, w in zip(values, wanted, strict=True)]
    return {
        "false_positives": sum(bool(v) and not w for v, w in pairs),
        "negative_cases": sum(not w for w in wanted),
        "false_negatives": sum(bool(w) and not v for v, w in pairs),
        "positive_cases": sum(bool(w) for w in wanted),
        "exceptions": failed,
        "hangs": sum(v == "hang" for v in values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000, help="GSM8K-like completions for our reward")
    parser.add_argument("--peer-samples", type=int, default=500, help="of these, for the slower peers")
    parser.add_argument("--latex-samples", type=int, default=400)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/benchmarks/rewards.json"))
    args = parser.parse_args()

    report: dict = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    rows: list[tuple] = []
    numbers, latex = gsm8k_like(args.samples), latex_like(args.latex_samples)
    some = tuple(part[: args.peer_samples] for part in numbers)
    math_verify_grader(*(part[:5] for part in latex))  # warm
    trl_grader(*(part[:5] for part in latex))
    groups = (
        ("numbers", 3, [("r1llama", uncached(2), numbers), ("TRL", trl_grader, some),
                        ("math-verify", math_verify_grader, some)]),
        ("latex", 1, [("r1llama, 2 workers", uncached(2), latex), ("TRL", trl_grader, latex),
                      ("math-verify", math_verify_grader, latex)]),
    )  # fmt: skip
    for kind, rounds, graders in groups:
        for (name, _, data), (speed, right) in zip(graders, rates(graders, rounds), strict=True):
            entry = {"kind": kind, "grader": name, "per_second": speed, "as_meant": right}
            report.setdefault("throughput", []).append(entry)
            rows.append((kind, name, len(data[0]), f"{speed:,.0f}", f"{right:.3f}"))
    print(table(("answers", "grader", "samples", "per second", "as meant"), rows), end="\n\n")
    speeds = {(r["kind"], r["grader"].split(",")[0]): r["per_second"] for r in report["throughput"]}
    for kind in ("numbers", "latex"):
        report[f"{kind}_times_trl"] = speeds[kind, "r1llama"] / speeds[kind, "TRL"]
        print(f"{kind}: {report[f'{kind}_times_trl']:.1f} times TRL")
    print()

    cases = [
        case
        for case in load_cases()
        if case["reward"] == "accuracy" and "prompt" not in case and case["columns"]["solution"] is not None
    ]
    report["corpus"] = {}
    rows = []
    for name, grader in (("r1llama", ours_grader), ("TRL", trl_grader), ("math-verify", math_verify_grader)):
        counts = report["corpus"][name] = soundness(grader, cases)
        false_positives = f"{counts['false_positives']} of {counts['negative_cases']}"
        false_negatives = f"{counts['false_negatives']} of {counts['positive_cases']}"
        rows.append((name, false_positives, false_negatives, counts["exceptions"], counts["hangs"]))
    print(table(("grader", "false positives", "false negatives", "exceptions", f"hangs over {WALL:.0f} s"), rows))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1))
    print(f"\nwrote {args.output}")


if __name__ == "__main__":
    main()
