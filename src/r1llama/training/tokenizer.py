"""Tokenizer: byte-level BPE, trained from a recipe.

    r1llama tokenizer --config recipe.yaml [--key value ...]

The dataset holds `text`. Every fiftieth document is kept out of the training, and measured on. What is written is a
directory that `AutoTokenizer.from_pretrained` loads, whole or not at all; a finished one is left as it is, because
the models that were trained with it depend on every id.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import yaml
from accelerate import PartialState
from transformers import AutoTokenizer

from r1llama.data.chat import template_path
from r1llama.data.tokenizer import check_tokenizer, compression, train_tokenizer
from r1llama.training import recipe, stage
from r1llama.training.dataset import DataArguments, load_dataset
from r1llama.training.recipe import RecipeError

HELD_OUT_EVERY, MAX_HELD_OUT = 50, 1_000


@dataclass
class TokenizerArguments(DataArguments):
    """The keys of a tokenizer recipe."""

    output_dir: str | None = field(default=None, metadata={"help": "Directory to write the tokenizer to."})
    vocab_size: int = field(
        default=6400,
        metadata={"help": "Tokens in all: bytes, tags, special tokens and merges. 6400 suits 30M models."},
    )
    chat_template: str | None = field(
        default="r1llama",
        metadata={
            "help": "Chat template: r1llama, llama3, llama3.1 or a Jinja file. Its marks, such as <|im_end|>, become "
            "special tokens. Null: none."
        },
    )
    max_documents: int | None = field(
        default=None, metadata={"help": "Read so many documents at most; a stream may have no end."}
    )
    seed: int = field(default=42, metadata={"help": "Of the order of a mixture or a shuffled stream."})


def main(argv: list[str]) -> dict[str, float]:
    """Run the stage.

    Args:
        argv: Such as `["--config", "tokenizer.yaml", "--vocab_size", "8192"]`.

    Returns:
        `vocab_size`, and how many documents were trained on, and characters and bytes per token on those held out
        (also in `all_results.json`).

    Raises:
        RecipeError: The run cannot work, or `output_dir` holds something else.
    """
    args, values = recipe.read((TokenizerArguments,), argv, _check)
    stage.set_up()
    output_dir = Path(args.output_dir)
    metrics = _finished(output_dir, values)
    PartialState().wait_for_everyone()  # all have looked before one writes
    if metrics:
        return metrics
    partial = output_dir.with_name(f".{output_dir.name}.partial")
    if PartialState().is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    # Rows that are skipped are listed there
    rows = load_dataset(replace(args, output_dir=str(partial)), args.dataset_train_split, "text")
    if PartialState().is_main_process:
        metrics = _train(args, rows, partial)
        recipe.save(values, partial / "recipe.yaml")
        for file in partial.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        os.replace(partial, output_dir)
        stage.log.info("done: %s: %s", output_dir, json.dumps(metrics))
    PartialState().wait_for_everyone()
    return json.loads((output_dir / "all_results.json").read_text(encoding="utf-8"))


def _check(values: dict) -> None:
    if not values["output_dir"]:
        raise RecipeError("`output_dir` is missing: set it in the recipe or with --output_dir")
    if values["max_documents"] is not None and values["max_documents"] <= 0:
        raise RecipeError(f"`max_documents: {values['max_documents']}` must be above 0")
    try:
        train_tokenizer([], values["vocab_size"], _template(values["chat_template"]))  # no texts: in no time
    except ValueError as error:
        raise RecipeError(f"`vocab_size`, `chat_template`: {error}") from error


def _template(name: str | None) -> str | None:
    return template_path(name).read_text(encoding="utf-8") if name else None


def _finished(output_dir: Path, values: dict) -> dict[str, float] | None:
    """The metrics of the tokenizer that lies there, if it is this recipe's; None if the directory is empty."""
    if not output_dir.exists() or not any(output_dir.iterdir()):
        return None
    if not (output_dir / "recipe.yaml").exists():
        raise RecipeError(
            f"`output_dir: {output_dir}` is not empty, and holds no tokenizer of this stage: name another"
        )
    before = yaml.safe_load((output_dir / "recipe.yaml").read_text(encoding="utf-8"))
    # A key that it does not know is younger than this tokenizer
    for key in sorted(key for key in values.keys() & before if key != "output_dir" and before[key] != values[key]):
        raise RecipeError(
            f"`output_dir: {output_dir}` holds a tokenizer trained with `{key}: {before[key]}`, not "
            f"{values[key]}, and models may depend on it: name another directory, or delete this one"
        )
    stage.log.info("%s is finished: nothing to do; delete it to start over", output_dir)
    return json.loads((output_dir / "all_results.json").read_text(encoding="utf-8"))


def _train(args: TokenizerArguments, rows, folder: Path) -> dict[str, float]:
    held_out: list[str] = []
    documents = 0

    def training_texts() -> Iterator[str]:
        nonlocal documents
        for index, row in enumerate(islice(rows, args.max_documents)):
            if index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 and len(held_out) < MAX_HELD_OUT:
                held_out.append(row["text"])
            else:
                documents += 1
                yield row["text"]

    template = _template(args.chat_template)
    train_tokenizer(training_texts(), args.vocab_size, template).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    try:
        check_tokenizer(tokenizer)
    except ValueError as error:
        raise RecipeError(f"the tokenizer is unusable: {error}") from error

    if len(tokenizer) < args.vocab_size:
        stage.log.warning(
            "%d tokens, not `vocab_size: %d`: no further pair of tokens occurs twice in these texts; use more text",
            len(tokenizer),
            args.vocab_size,
        )
    if not held_out:
        stage.log.warning(
            "measured on the training texts: of %d documents none is held out, %d would do", documents, HELD_OUT_EVERY
        )
    measured = compression(tokenizer, held_out or (row["text"] for row in islice(rows, args.max_documents)))
    metrics = {
        "vocab_size": len(tokenizer),
        "train_documents": documents,
        "held_out_documents": len(held_out),
        "characters_per_token": round(measured["characters_per_token"], 4),
        "bytes_per_token": round(measured["bytes_per_token"], 4),
    }
    (folder / "all_results.json").write_text(json.dumps(metrics, indent=4), encoding="utf-8")
    return metrics


if __name__ == "__main__":
    stage.run(main)
