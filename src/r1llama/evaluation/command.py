"""`r1llama evaluate --model DIR --data FILE.jsonl --max-new-tokens N`: score a model on problems."""

import argparse
import importlib
import json
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

import r1llama  # noqa: F401  (registers the architecture with the Auto classes)
from r1llama.data.loading import DataError, load_rows
from r1llama.evaluation.accuracy import evaluate


def main(argv: list[str]) -> None:
    """Print a JSON object with accuracy, its 95 % interval, format rate, tokens per answer and truncation rate.

    Raises:
        DataError: nothing at `--data`, or rows without `prompt` and `solution`.
    """
    parser = argparse.ArgumentParser(prog="r1llama evaluate", description="Answer every problem once and grade it.")
    parser.add_argument("--model", required=True, help="model directory or hub id")
    parser.add_argument("--data", required=True, help="rows with `prompt` and `solution`: a local path or a hub id")
    parser.add_argument("--split", default="train", help="split of the data; a single file is `train`")
    parser.add_argument("--task", help="task in r1llama.tasks that turns raw rows into problems, such as gsm8k")
    parser.add_argument("--max-new-tokens", type=int, required=True, help="where an answer is cut off")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the sampling; 0, the default, is greedy")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--completions", type=Path, help="JSONL file to write every prompt and completion to")
    args = parser.parse_args(argv)

    problems = load_rows(args.data, split=args.split).to_list()
    if args.task:
        to_problem = importlib.import_module(f"r1llama.tasks.{args.task}").problem
        problems = [to_problem(row) for row in problems]
    missing = {"prompt", "solution"} - problems[0].keys()
    if missing:
        raise DataError(f"{args.data} has no column {' or '.join(sorted(missing))}, but {', '.join(problems[0])}")

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, device_map="auto")
    set_seed(args.seed)
    result = vars(
        evaluate(model, tokenizer, problems, args.max_new_tokens, args.temperature, batch_size=args.batch_size)
    )
    completions = result.pop("completions")
    if args.completions:
        with open(args.completions, "w", encoding="utf-8") as file:
            for problem, completion in zip(problems, completions, strict=True):
                file.write(json.dumps(problem | {"completion": completion}, ensure_ascii=False) + "\n")
    print(json.dumps(result, indent=2))
