"""Sampling: problems in, graded completions out, as JSON lines. Killed at any moment, it continues where it was.

    r1llama sample --model DIR --data problems.jsonl --num-generations 8 --max-new-tokens 256 --output traces.jsonl
    accelerate launch -m r1llama.training.sampling ...

A line is a problem's row, its `completion` (text, or one assistant message after a chat prompt), one column for each
reward under the name that GRPO's tables give it, `tokens` and `truncated`. Each batch draws from a seed of its own, so
that where a run was interrupted, and on how many processes it runs, changes no completion.

- `Sampling`: how to sample; a mapping inside a recipe
- `sample`: writes the lines
- `select`: those worth learning from (rejection sampling)
- `summarise`: accuracy and its interval, format rate, tokens per answer
"""

import argparse
import asyncio
import inspect
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from r1llama.data.loading import DataError
from r1llama.evaluation.accuracy import wilson_interval
from r1llama.generation.completions import complete
from r1llama.rewards import get_reward, required_columns
from r1llama.training import stage
from r1llama.training.checkpoint import replace_text
from r1llama.training.checks import check_prompts, check_rewards
from r1llama.training.recipe import RecipeError
from r1llama.training.stopping import disk_watched


@dataclass
class Sampling:
    """How completions are drawn; the names are GRPO's."""

    num_generations: int = 8  # completions a problem
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    max_completion_length: int = 256  # in tokens
    batch_size: int = 64  # completions at a time, on each device
    dtype: str = "auto"  # of the weights; auto: as saved

    def __post_init__(self):
        for name in ("num_generations", "max_completion_length", "batch_size"):
            if getattr(self, name) < 1:
                raise RecipeError(f"`{name}: {getattr(self, name)}` must be at least 1")
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise RecipeError("`temperature` and `top_k` must not be negative, and `top_p` must lie in (0, 1]")
        if self.temperature == 0 and self.num_generations > 1:
            raise RecipeError(f"`temperature: 0` would write the same completion {self.num_generations} times")


def load_rewards(names: list, columns: list[str]) -> list[Callable]:
    """Rewards by name, refused if the problems lack a column that one needs."""
    try:
        rewards = [get_reward(name) for name in names]
    except (ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise RecipeError(f"`reward_funcs`: {error}") from error
    if len({reward.__name__ for reward in rewards}) < len(rewards) or not rewards:
        raise RecipeError(f"`reward_funcs: {names}`: name at least one reward, and each once")
    check_rewards(names, None, [required_columns(reward) for reward in rewards], columns)
    return rewards


def load_model(folder: str, dtype: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model on this process's device."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    return model.to(PartialState().device)


def sample(
    path: Path,
    problems: list[dict],
    load: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rewards: list[Callable],
    how: Sampling,
    seed: int,
) -> list[dict]:
    """Complete and grade every problem `how.num_generations` times; every process calls it.

    Args:
        path: The JSON lines; complete batches that lie there stay.
        problems: Rows with `prompt`, a text or chat messages, and the columns that the rewards ask for.
        load: Gives the model; called only if something is left to sample.
        tokenizer: Its tokenizer.
        rewards: The graders, as `get_reward` gives them.
        how: How to sample.
        seed: Of the draws. torch's global generator is seeded anew for every batch.

    Returns:
        All rows, `num_generations` of each problem together, in the problems' order.

    Raises:
        DataError: The lines in `path` complete other problems, or a problem cannot be written as JSON.
    """
    state = PartialState()
    try:
        json.dumps(problems)
    except TypeError as error:
        raise DataError(f"the problems hold what JSON cannot ({error}): remove that column") from None
    asked = [problem for problem in problems for _ in range(how.num_generations)]
    if state.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn(path, asked, how.batch_size)
    state.wait_for_everyone()
    done = len(read_lines(path))
    model = load() if done < len(asked) else None
    bar = tqdm(total=len(asked), initial=done, unit="completion", desc=path.stem, disable=not state.is_main_process)
    for start in range(done, len(asked), how.batch_size * state.num_processes):
        mine = start + how.batch_size * state.process_index
        rows = _graded(asked[mine : mine + how.batch_size], model, tokenizer, rewards, how, f"{seed} {mine}")
        rows = gather_object(rows)
        if state.is_main_process:
            with disk_watched(path.parent, f"writing {path.name}"), open(path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())
        bar.update(len(rows))
    bar.close()
    state.wait_for_everyone()
    return read_lines(path)


def _graded(problems, model, tokenizer, rewards, how: Sampling, seed: str) -> list[dict]:
    if not problems:
        return []
    torch.manual_seed(random.Random(seed).getrandbits(63))
    prompts = [problem["prompt"] for problem in problems]
    drawn = complete(
        model, tokenizer, prompts, how.max_completion_length, how.temperature, top_p=how.top_p, top_k=how.top_k
    )
    is_chat = not isinstance(prompts[0], str)
    completions = [[{"role": "assistant", "content": c.text}] if is_chat else c.text for c in drawn]
    columns = {key: [problem[key] for problem in problems] for key in problems[0].keys() - {"prompt", "completion"}}
    arguments = {"prompts": prompts, "completions": completions, "completion_ids": [c.ids for c in drawn]}
    graded = {}
    for reward in rewards:
        values = reward(**arguments, **columns)
        if inspect.iscoroutine(values):
            values = asyncio.run(values)
        graded[reward.__name__] = [None if value is None else float(value) for value in values]
    return [
        problem
        | {"completion": completion}
        | {name: values[i] for name, values in graded.items()}
        | {"tokens": len(drawn[i].ids), "truncated": drawn[i].truncated}
        for i, (problem, completion) in enumerate(zip(problems, completions, strict=True))
    ]


def read_lines(path: Path) -> list[dict]:
    # Not `splitlines`: a completion may hold the other line ends of Unicode.
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line] if path.exists() else []


def _drop_torn(path: Path, asked: list[dict], batch_size: int) -> None:
    """Cut the file behind its last complete batch."""
    if not path.exists():
        return
    lines, complete_bytes, count = path.read_bytes().split(b"\n")[:-1], 0, 0  # behind the last line end: torn
    if len(lines) > len(asked):
        raise DataError(f"{path} holds more than the {len(asked)} completions asked for: move it away")
    for start in range(0, len(asked), batch_size):
        batch = lines[start : start + batch_size]
        try:
            prompts = [json.loads(line)["prompt"] for line in batch]
        except (ValueError, TypeError, KeyError):  # damaged: what follows cannot be trusted
            break
        for number, (prompt, problem) in enumerate(zip(prompts, asked[start:], strict=False), start=start + 1):
            if prompt != problem["prompt"]:
                raise DataError(f"{path}:{number} completes another problem: move this file away, or undo the change")
        if len(batch) < min(batch_size, len(asked) - start):
            break
        complete_bytes += sum(len(line) + 1 for line in batch)
        count += len(batch)
    os.truncate(path, complete_bytes)
    stage.log.info("%s: %d of %d completions are there", path, count, len(asked))


def select(
    rows: list[dict],
    names: list[str],
    tokenizer: PreTrainedTokenizerBase,
    threshold: float = 1.0,
    per_problem: int | None = None,
    max_pass_rate: float | None = None,
) -> tuple[list[dict], dict[str, int]]:
    """The completions worth learning from: of those that earn every reward, the first few different ones of each
    problem. Cut-off ones are out, and so are those that spell a special token: re-tokenised, it would become one.

    Args:
        rows: As `sample` returns them.
        names: The rewards' columns; the first one tells right from wrong.
        tokenizer: Knows the special tokens.
        threshold: What each reward must reach.
        per_problem: At most so many a problem; None for all.
        max_pass_rate: Problems that more than this share of the completions solve are left out; None for none.

    Returns:
        The rows, and counts: sampled, right, problems, solved (at least once), easy (left out), kept.
    """
    by_problem: dict[str, list[dict]] = {}
    for row in rows:
        by_problem.setdefault(json.dumps(row["prompt"], sort_keys=True), []).append(row)
    counts = {"sampled": len(rows), "right": 0, "problems": len(by_problem), "solved": 0, "easy": 0}
    kept = []
    for group in by_problem.values():
        right = sum(reaches(row[names[0]], threshold) for row in group)
        counts["right"] += right
        counts["solved"] += right > 0
        if max_pass_rate is not None and right > max_pass_rate * len(group):
            counts["easy"] += 1
            continue
        good: dict[str, dict] = {}
        for row in group:
            text = json.dumps(row["completion"], ensure_ascii=False)
            is_clean = not row["truncated"] and not any(token in text for token in tokenizer.all_special_tokens)
            if is_clean and all(reaches(row[name], threshold) for name in names):
                good.setdefault(text, row)
        kept += list(good.values())[:per_problem]
    return kept, counts | {"kept": len(kept)}


def reaches(reward: float | None, threshold: float) -> bool:
    return reward is not None and reward >= threshold


def summarise(rows: list[dict], names: list[str], threshold: float = 1.0) -> dict:
    """What a model is worth by its graded completions: the share that reaches the threshold in the first reward
    (`accuracy`, with the 95 % Wilson `interval`) and in each other one, `tokens_per_answer`, `truncation_rate`."""
    right = [sum(reaches(row[name], threshold) for row in rows) for name in names]
    return {
        "completions": len(rows),
        "accuracy": right[0] / len(rows),
        "interval": wilson_interval(right[0], len(rows)),
        **{name: count / len(rows) for name, count in zip(names[1:], right[1:], strict=True)},
        "tokens_per_answer": sum(row["tokens"] for row in rows) / len(rows),
        "truncation_rate": sum(row["truncated"] for row in rows) / len(rows),
    }


def main(argv: list[str]) -> None:
    """The command `r1llama sample`; prints the counts as JSON.

    Raises:
        RecipeError, DataError: It cannot work; raised before the model loads.
    """
    parser = argparse.ArgumentParser(prog="r1llama sample", description="Complete every problem and grade it.")
    parser.add_argument("--model", required=True, help="model directory or hub id")
    parser.add_argument("--data", required=True, help="problems: a local path or a hub id")
    parser.add_argument("--config-name", help="configuration of a hub dataset")
    parser.add_argument("--split", default="train", help="split of the data; a single file is `train`")
    parser.add_argument("--task", help="task in r1llama.tasks that turns raw rows into problems, such as gsm8k")
    parser.add_argument("--rewards", nargs="+", default=["accuracy", "format"], help="the first says what is right")
    parser.add_argument("--threshold", type=float, default=1.0, help="what each reward must reach to count as right")
    parser.add_argument("--num-generations", type=int, default=8, help="completions a problem")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="where a completion is cut off")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0, help="0 is all tokens")
    parser.add_argument("--batch-size", type=int, default=64, help="completions at a time, on each device")
    parser.add_argument("--dtype", default="auto", help="of the weights; auto: as saved")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JSONL file; what lies there is continued")
    parser.add_argument("--keep", choices=["all", "right"], default="all", help="right: sound and different ones")
    parser.add_argument("--keep-per-problem", type=int, help="with `--keep right`: at most so many a problem")
    args = parser.parse_args(argv)
    PartialState(cpu=not torch.accelerator.is_available())  # else CPU processes would not know of each other
    how = Sampling(
        num_generations=args.num_generations,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        max_completion_length=args.max_new_tokens,
        batch_size=args.batch_size,
        dtype=args.dtype,
    )
    stage.set_up()
    data = stage.DataArguments(dataset_name=args.data, dataset_config=args.config_name, task=args.task)
    problems = stage.load_dataset(data, args.split, "problem")
    model_args = ModelConfig(model_name_or_path=args.model)
    config = stage.load_config(model_args, False)
    tokenizer = stage.load_tokenizer(model_args, config, False)
    check_prompts(problems, tokenizer, config, how.max_completion_length)
    rewards = load_rewards(args.rewards, problems.column_names)
    # Hidden, so that a directory of completions stays a dataset.
    path = args.output if args.keep == "all" else args.output.with_name(f".{args.output.stem}.all.jsonl")
    ours = {key: value for key, value in vars(args).items() if not key.startswith(("output", "keep_", "threshold"))}
    same_settings(args.output.with_name(f".{args.output.stem}.settings.json"), ours)

    def load():
        return load_model(args.model, how.dtype)

    rows = sample(path, problems.to_list(), load, tokenizer, rewards, how, args.seed)
    names = [reward.__name__ for reward in rewards]
    kept, counts = select(rows, names, tokenizer, args.threshold, args.keep_per_problem)
    if PartialState().is_main_process:
        if args.keep == "right":
            write_lines(args.output, kept)
        print(json.dumps(counts | summarise(rows, names, args.threshold), indent=2))


def write_lines(path: Path, rows: list[dict]) -> None:
    """Write JSON lines; the file is complete or not there."""
    replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def same_settings(path: Path, settings: dict) -> None:
    """Refuse to continue what was begun with other settings, and remember these ones.

    Raises:
        RecipeError: They differ; names the first key.
    """
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in settings if before.get(key) != json.loads(json.dumps(settings[key]))]
        if changed:
            raise RecipeError(
                f"{path.parent} was begun with `{changed[0]}: {before.get(changed[0])}`, not {settings[changed[0]]}: "
                "undo the change, or choose another output"
            )
    elif PartialState().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(settings, indent=1))
    PartialState().wait_for_everyone()


if __name__ == "__main__":
    stage.run(main)
