"""`r1llama data inspect`: what the trainer will see of the data, decoded, with the loss mask in colour.

    r1llama data inspect rows.jsonl                               the rows as they are understood
    r1llama data inspect rows.jsonl --tokenizer DIR               as SFT sees them: tokens, and which are learned
    r1llama data inspect --config sft.yaml [--key value ...]      as the recipe's stage sees them

The rows go the way of the stage itself: through its loader, through an SFTTrainer (around a model of next to no size)
with its chat template, masks, lengths and packing, and through that trainer's collator. For GRPO they are the rendered
prompts and the columns for the rewards. Every other key of a recipe (`--task gsm8k`, `--on_error skip`, `--max_length
512` ...) is accepted beside a file too.
"""

import argparse
import dataclasses
import os
import re
import statistics
import sys
import tempfile
from itertools import islice

from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, ModelConfig, SFTConfig, is_conversational

from r1llama.data.packing import BlockStream
from r1llama.training import pretrain, recipe, sft, stage
from r1llama.training.checks import check_chat_template
from r1llama.training.collator import pack_in_rows
from r1llama.training.curriculum import by_pass_rate
from r1llama.training.distill import DistillArguments
from r1llama.training.grpo import GRPOArguments
from r1llama.training.recipe import RecipeError

STAGES = {
    "sft": (sft.SFTArguments, SFTConfig, ModelConfig),
    "distill": (DistillArguments, SFTConfig, ModelConfig),
    "pretrain": (pretrain.PretrainArguments, SFTConfig, ModelConfig),
    "grpo": (GRPOArguments, GRPOConfig, ModelConfig),
}
STREAMED = 1000  # rows of a stream that are counted
LEARNED, MASKED, PLAIN = "\033[32m", "\033[2m", "\033[0m"  # green, dim


def main(argv: list[str]) -> None:
    """Print the first rows and the statistics of all.

    Args:
        argv: `["inspect", "rows.jsonl"]` or `["inspect", "--config", "sft.yaml"]`, and further keys.

    Raises:
        RecipeError, DataError: The stage would refuse the data.
    """
    parser = argparse.ArgumentParser(
        prog="r1llama data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["inspect"])
    parser.add_argument("data", nargs="?", help="file, directory or hub id; or leave it out and name a recipe")
    parser.add_argument("--config", help="recipe of sft, distill, pretrain or grpo")
    parser.add_argument("--tokenizer", help="directory or hub id; a recipe's own unless given")
    parser.add_argument("--rows", type=int, default=3, help="how many to show (default 3)")
    args, rest = parser.parse_known_args(argv)
    if bool(args.data) == bool(args.config):
        raise RecipeError("name either a file or, with --config, a recipe")
    rest = [*(["--config", args.config] if args.config else ["--dataset_name", args.data]), *rest]
    stage.set_up()
    name = _stage_of(args.config) if args.config else "sft"
    keys, training_args, model_args, values = recipe.read(STAGES[name], rest)
    with tempfile.TemporaryDirectory() as folder:
        training_args.output_dir = folder  # nothing of the run's own directory is touched
        keys.output_dir = None
        if name == "grpo":
            _show_problems(keys, training_args.seed, _tokenizer(args, model_args, values), args.rows)
        elif args.config or args.tokenizer:
            _show_tokens(name, keys, training_args, _tokenizer(args, model_args, values), args.rows)
        else:
            _show_rows(keys, args.rows)


def _stage_of(config: str) -> str:
    """The stage whose keys the recipe's are; the first, if several have them all."""
    keys = recipe.read_yaml(config).keys() - {"env", "smoke"}
    known = {name: {f.name for kind in kinds for f in dataclasses.fields(kind)} for name, kinds in STAGES.items()}
    return min(known, key=lambda name: len(keys - known[name]))


def _tokenizer(args, model_args, values: dict):
    where = args.tokenizer or values.get("tokenizer_name")
    if not where and not model_args.model_name_or_path:
        raise RecipeError("the recipe names no tokenizer: set --tokenizer")
    try:
        return stage.load_tokenizer(model_args, None, False, where)
    except RecipeError as error:
        raise RecipeError(f"{error} (--tokenizer names another)") from error


def _show_rows(keys, count: int) -> None:
    try:
        rows = stage.load_dataset(keys, keys.dataset_train_split, "demonstration")
    except RecipeError as error:
        if "of which no demonstration can be made" not in str(error):
            raise
        rows = stage.load_dataset(keys, keys.dataset_train_split, "problem")
    for number, row in enumerate(islice(rows, count)):
        _print_row(number, row)
    counted = rows if isinstance(rows, Dataset) else list(islice(rows, STREAMED))
    print(f"{len(counted)} rows{_of_stream(rows)}: {', '.join(rows.column_names)}")
    print("with --tokenizer DIR: what is learned, and how long the rows are")


def _show_problems(keys, seed: int, tokenizer, count: int) -> None:
    rows = stage.load_dataset(keys, keys.dataset_train_split, "problem")
    rows = by_pass_rate(rows, keys.min_pass_rate, keys.max_pass_rate, keys.easy_first, seed)
    check_chat_template(next(iter(rows)), tokenizer)
    lengths = []
    for number, row in enumerate(rows):
        prompt = row["prompt"]
        is_chat = is_conversational(row)
        if is_chat:
            prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        lengths.append(len(tokenizer(prompt, add_special_tokens=not is_chat)["input_ids"]))
        if number < count:
            _print_row(number, {**row, "prompt": prompt})
    print(f"{len(rows)} problems: {', '.join(rows.column_names)}")
    _print_lengths("prompts", lengths)


def _show_tokens(name: str, keys, training_args, tokenizer, count: int) -> None:
    tokenizer.padding_side = "right"
    stage.set_chat_template(training_args, tokenizer)
    trainer = _trainer(name, keys, training_args, tokenizer)
    rows = trainer.stream if getattr(trainer, "stream", None) is not None else trainer.train_dataset
    is_counted, lengths, learned = isinstance(rows, Dataset), [], 0
    for number, row in enumerate(rows if is_counted else islice(rows, STREAMED)):
        batch = trainer.data_collator([row])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        lengths.append(len(ids))
        learned += sum(label != -100 for label in labels[1:])  # nothing comes before the first
        if number < count:
            kept = sum(label != -100 for label in labels[1:])
            print(_heading(f"row {number}: {len(ids)} tokens, {kept} learned"))
            print(_coloured(ids, labels, tokenizer) + "\n")
    what = "blocks" if name == "pretrain" else "packed rows" if training_args.packing else "rows"
    print(f"{len(lengths)} {what}{_of_stream(rows)}, {sum(lengths)} tokens, {learned / sum(lengths):.1%} learned")
    _print_lengths(what, lengths)
    if long := getattr(trainer, "long_rows", {}).get("train"):
        done = {"drop": "left out", "truncate": "cut"}[keys.overlong]
        print(f"{long} rows of more than {training_args.max_length} tokens were {done} (overlong: {keys.overlong})")


def _trainer(name: str, keys, training_args, tokenizer):
    """The stage's trainer with the stage's rows, around a model of next to no size."""
    training_args.use_cpu = True
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    given = {"model": model, "args": training_args, "processing_class": tokenizer}
    if name == "pretrain":
        rows, stream = pretrain.load_documents(keys, training_args, keys.dataset_train_split), None
        if isinstance(rows, Dataset):
            rows = pretrain.packed(rows, tokenizer, training_args)
        else:
            field, window = training_args.dataset_text_field, keys.shuffle_window
            stream = BlockStream(rows, tokenizer, training_args.max_length, field, window)
        training_args.dataset_kwargs = {"skip_prepare_dataset": True}
        training_args.packing = training_args.padding_free = False
        return pretrain.BlockTrainer(stream, {}, train_dataset=rows, **given)
    rows = stage.load_dataset(keys, keys.dataset_train_split, "demonstration")
    if not training_args.chat_template_path:
        check_chat_template(next(iter(rows)), tokenizer)
    trainer = sft.SFTStageTrainer(train_dataset=rows, overlong=keys.overlong, **given)
    pack_in_rows(trainer)
    return trainer


def _coloured(ids: list[int], labels: list[int], tokenizer) -> str:
    """The tokens as text: learned ones green, others dim; where there is no colour, the learned between ⟦ and ⟧."""
    has_colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    text, start = "", 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (labels[end] == -100) != (labels[start] == -100):
            part, is_learned = _safe(tokenizer.decode(ids[start:end])), labels[start] != -100
            if has_colour:
                part = f"{LEARNED if is_learned else MASKED}{part}{PLAIN}"
            text, start = text + (f"⟦{part}⟧" if is_learned and not has_colour else part), end
    return text


def _print_row(number: int, row: dict) -> None:
    print(_heading(f"row {number}"))
    for name, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
            value = "".join(f"\n  [{message['role']}] {message['content']}" for message in value)
        print(f"{name}: {_safe(str(value))}")
    print()


def _print_lengths(what: str, lengths: list[int]) -> None:
    mean, median = statistics.mean(lengths), statistics.median(lengths)
    print(f"tokens of the {what}: {min(lengths)} to {max(lengths)}, mean {mean:.1f}, median {median:.0f}")


def _heading(text: str) -> str:
    return f"--- {text} ".ljust(70, "-")


def _of_stream(rows) -> str:
    return "" if isinstance(rows, Dataset) else f" (of a stream; the first {STREAMED} at most)"


def _safe(text: str) -> str:
    """Without control characters, which could steer the terminal."""
    return re.sub(r"[^\S\n\t ]|[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], text)
