"""`r1llama rewards list | score | audit`: look rewards up, try them on recorded completions, attack them."""

import argparse
import inspect
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from .audit import CORPUS, by_class, load_cases, run_cases
from .catalogue import CATALOGUE, get_reward, lookup, required_columns
from .combinators import evaluate, name_of


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as aligned text; numbers to the right."""
    cells = [list(map(str, header)), *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for number, row in enumerate(cells):
        original = rows[number - 1] if number else header
        lines.append(
            "  ".join(
                cell.rjust(width) if isinstance(value, (int, float)) else cell.ljust(width)
                for cell, width, value in zip(row, widths, original, strict=True)
            ).rstrip()
        )
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def list_rewards(args: argparse.Namespace) -> int:
    """Print every reward of the catalogue with its columns and what it does."""
    rows = []
    for name in sorted(CATALOGUE):
        target: Any = lookup(name)
        columns = "(takes parameters)"
        if not isinstance(target, type):
            columns = ", ".join(sorted(required_columns(target)))
        elif all(p.default is not p.empty for p in inspect.signature(target).parameters.values()):
            columns = ", ".join(sorted(required_columns(target())))
        summary = (inspect.getdoc(target) or "").split("\n\n")[0].replace("\n", " ")
        rows.append((name, columns, summary[:100]))
    print(table(("name", "columns", "value"), rows))
    return 0


def parse_spec(text: str) -> Any:
    """Read a reward given on the command line: a name, a dotted path, or a JSON mapping."""
    return json.loads(text) if text.lstrip().startswith("{") else text


def score(args: argparse.Namespace) -> int:
    """Print what rewards give to recorded completions, and write one JSON object per row."""
    with open(args.file, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    if not rows:
        print(f"{args.file} has no rows", file=sys.stderr)
        return 2
    columns = {key: [row.get(key) for row in rows] for key in rows[0]}
    completions = columns.pop("completion", None) or columns.pop("completions", None)
    if completions is None:
        print(f"{args.file} needs a column 'completion'; it has {', '.join(rows[0])}", file=sys.stderr)
        return 2
    if "prompt" in columns:
        columns["prompts"] = columns.pop("prompt")
    results: list[dict[str, Any]] = [dict(row) for row in rows]
    lines: list[tuple] = []
    for text in args.reward:
        reward = get_reward(parse_spec(text))
        missing = required_columns(reward) - columns.keys()
        if missing:
            print(f"{name_of(reward)} needs the column {', '.join(sorted(missing))}", file=sys.stderr)
            return 2
        extra: dict[str, list] = {}
        metrics: dict[str, float] = {}
        values = evaluate(
            reward,
            {"completions": completions, **columns, "log_extra": extra.__setitem__, "log_metric": metrics.__setitem__},
        )
        for i, result in enumerate(results):
            result.setdefault("rewards", {})[name_of(reward)] = values[i]
            result.update({key: column[i] for key, column in extra.items()})
        known = [v for v in values if v is not None]
        mean = sum(known) / len(known) if known else math.nan
        deviation = math.sqrt(sum((v - mean) ** 2 for v in known) / len(known)) if known else math.nan
        none = sum(v is None for v in values)
        span = (f"{min(known):.3f}", f"{max(known):.3f}") if known else ("-", "-")
        lines.append((name_of(reward), len(values), f"{mean:.4f}", f"{deviation:.4f}", *span, none))
        lines += [(f"  {key}", "", f"{value:.4f}", "", "", "", "") for key, value in metrics.items()]
    print(table(("reward", "rows", "mean", "std", "min", "max", "none"), lines))
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(result, ensure_ascii=True) + "\n" for result in results)
        print(f"wrote {args.output}")
    return 0


def audit(args: argparse.Namespace) -> int:
    """Run the corpus, or the given files, and report; 1 when a class has a false positive, or too many negatives."""
    cases = [case for path in (args.files or [CORPUS]) for case in load_cases(path)]
    if args.reward:
        cases = [{**case, "reward": parse_spec(args.reward)} for case in cases if case["reward"] == "accuracy"]
    outcomes = run_cases(cases)
    for outcome in outcomes:
        if outcome.kind != "ok":
            text = ascii(outcome.case["completion"][:100])
            print(f"{outcome.kind}: {outcome.case['id']} gave {outcome.value}, not {outcome.case['expect']}: {text}")
    summaries = by_class(outcomes)
    print(
        table(
            ("class", "cases", "false +", "false -", "errors", "slowest s", "slowest case"),
            [
                (s.name, s.cases, s.false_positives, s.false_negatives, s.errors, round(s.slowest, 3), s.slowest_id)
                for s in summaries
            ],
        )
    )
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump([{**s._asdict(), "passed": s.passed} for s in summaries], file, indent=1)
    return 0 if summaries[-1].passed else 1


def register(subparsers: Any) -> None:
    """Add the command `rewards` to an argparse sub-parser collection; the parsed arguments carry `func`."""
    parser = subparsers.add_parser("rewards", help="list, try and attack reward functions", description=__doc__)
    commands = parser.add_subparsers(dest="rewards_command", required=True)

    listing = commands.add_parser("list", help="every reward, its columns and what it pays for")
    listing.set_defaults(func=list_rewards)

    scoring = commands.add_parser("score", help="reward recorded completions")
    scoring.add_argument("file", help="JSONL with 'completion' (text or messages), 'prompt' and dataset columns")
    scoring.add_argument("--reward", action="append", required=True, help="name, dotted path or JSON; repeat for more")
    scoring.add_argument("--output", help="JSONL to write: each row with its rewards, answers and reasons")
    scoring.set_defaults(func=score)

    auditing = commands.add_parser("audit", help="run rewards against the adversarial corpus")
    auditing.add_argument("files", nargs="*", help="case files; the shipped corpus by default")
    auditing.add_argument("--reward", help="run the cases of 'accuracy' with this reward instead")
    auditing.add_argument("--output", help="JSON to write: the table")
    auditing.set_defaults(func=audit)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command by itself: `python -m r1llama.rewards.command list`."""
    parser = argparse.ArgumentParser(prog="r1llama")
    subparsers = parser.add_subparsers(required=True)
    register(subparsers)
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(arguments if arguments[:1] == ["rewards"] else ["rewards", *arguments])
    return args.func(args)


if __name__ == "__main__":
    sys.exit(main())
