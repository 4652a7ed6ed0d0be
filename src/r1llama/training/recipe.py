"""A recipe: one YAML file whose keys are the fields of a stage's dataclasses; the command line overrides it.

`read` turns `--config recipe.yaml [--smoke] --key value ...` into dataclass instances plus the resolved values; `save`
writes those values back as a recipe that resolves to the same run.

A recipe may hold `smoke:`, a mapping of its own keys. `--smoke` puts those values over the recipe's, for a trial of a
minute, and its output beside the real one's, in `<output_dir>-smoke`. The command line wins over both. Relative paths
start at the working directory.
"""

import dataclasses
import difflib
import os
from pathlib import Path

import torch
import yaml
from trl import TrlParser

from r1llama.training.checkpoint import replace_text

# Keys that older recipes carry, and what says the same thing today.
GONE_KEYS = {
    "max_prompt_length": "prompts are never cut now: shorten or filter the data; one that does not fit is refused",
    "max_seq_length": "use `max_length`",
    "vllm_device": "use `vllm_mode: colocate` or `vllm_mode: server`",
    "torch_dtype": "use `dtype`",
    "warmup_ratio": "use `warmup_steps`: a value below 1 is a share of all steps",
    "overwrite_output_dir": "use `resume_from_checkpoint: false` to start over",
    "evaluation_strategy": "use `eval_strategy`",
    "no_cuda": "use `use_cpu`",
    "use_flash_attention_2": "use `attn_implementation: flash_attention_2`",
    "per_gpu_train_batch_size": "use `per_device_train_batch_size`",
    "tokenizer_name_or_path": "the tokenizer is read from `model_name_or_path`",
    "dataset_path": "use `dataset_name`, a hub id or a local path",
    "dataset_split": "use `dataset_train_split`",
}


class RecipeError(ValueError):
    """A run that cannot work, found before the model loads. The message names the key and the cure."""


class RecipeParser(TrlParser):
    """TrlParser whose complaints are `RecipeError`s, without two hundred lines of usage."""

    def error(self, message):
        raise RecipeError(f"{message}. `--help` lists every key.")


def read(dataclass_types, argv: list[str], check=lambda values: None, preset=lambda values: {}):
    """Resolve a recipe.

    Args:
        dataclass_types: The stage's dataclasses; their fields are the recipe's keys.
        argv: Arguments such as `["--config", "grpo.yaml", "--seed", "1"]`.
        check: Called with the resolved values (a dict) before any dataclass is built, so that it can explain a
            value better than the dataclass itself would.
        preset: Called with the resolved values too, and before: returns values for keys that neither the file nor the
            command line sets.

    Returns:
        The dataclass instances, in order, and then the dict of resolved values (without secrets).

    Raises:
        RecipeError: An unknown or retired key, a value of the wrong type, a missing file.
    """
    usage = "--config recipe.yaml [--smoke] [--key value ...]"
    parser = RecipeParser(dataclass_types, allow_abbrev=False, usage=usage)
    parser.set_defaults_with_config(output_dir=None, resume_from_checkpoint="auto")
    argv = [piece for word in argv for piece in (word.split("=", 1) if word.startswith("--config=") else [word])]
    fields = {f.name: f for t in dataclass_types for f in dataclasses.fields(t) if f.init}
    for word in argv:
        name = word.removeprefix("--").split("=", 1)[0].replace("-", "_")
        if word.startswith("--") and name not in {"config", "smoke", "help"}:
            refuse_unknown(name if name in fields else name.removeprefix("no_"), fields, "command line")
    smoke = "--smoke" in argv
    argv = [word for word in argv if word != "--smoke"]
    if smoke and "--config" not in argv:
        raise RecipeError("--smoke runs the `smoke:` values of a recipe: name it with --config")
    values = {}
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise RecipeError("--config names no file")
        path = argv[at + 1]
        argv = argv[:at] + argv[at + 2 :]
        values = read_yaml(path)
        for name, value in (values.pop("env", None) or {}).items():
            os.environ[name] = str(value)
        trial = values.pop("smoke", None)
        _check(values, fields, path)
        if trial is not None:
            if not isinstance(trial, dict):
                raise RecipeError(f"{path}: `smoke` must hold `key: value` lines, not a {type(trial).__name__}")
            _check(trial, fields, f"{path}, `smoke`")
        if smoke:
            if trial is None:
                raise RecipeError(f"{path} has no `smoke:` values")
            if values.get("output_dir"):
                trial.setdefault("output_dir", str(values["output_dir"]).rstrip("/") + "-smoke")
            values |= trial
        parser.set_defaults_with_config(**values)
    parser.set_defaults_with_config(**preset(vars(parser.parse_args(argv))) | values)
    values = vars(parser.parse_args(argv))
    # Without an accelerator the CPU is the only choice, and TrainingArguments allows bf16 there only if told so.
    if "use_cpu" in values:
        values["use_cpu"] = values["use_cpu"] or not torch.accelerator.is_available()
    check(values)
    secrets = {"hub_token"}
    try:
        instances = parser.parse_dict(values)
    except (ValueError, TypeError) as error:
        raise RecipeError(str(error)) from error
    for instance in instances:  # a field without init is another dataclass's key that this one must know too
        for field in dataclasses.fields(instance):
            if not field.init and field.name in values:
                setattr(instance, field.name, values[field.name])
    return *instances, {key: value for key, value in values.items() if key not in secrets}


def nested(kind, values: dict, where: str):
    """A mapping inside a recipe as a dataclass instance, checked like the recipe itself.

    Args:
        kind: The dataclass; its fields are the keys.
        values: The mapping.
        where: What holds it, for the messages.
    """
    values = dict(values)
    _check(values, {f.name: f for f in dataclasses.fields(kind)}, where)
    return kind(**values)


def sets(argv: list[str], key: str) -> bool:
    """Whether the command line, or else the recipe it names (its `smoke` values count), gives a key a value."""
    flags = {f"--{key}", f"--{key.replace('_', '-')}"}
    if flags & {word.split("=", 1)[0] for word in argv}:
        return True
    words = [piece for word in argv for piece in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" not in words[:-1]:
        return False
    values = read_yaml(words[words.index("--config") + 1])
    trial = values.get("smoke")
    return bool(values.get(key) or ("--smoke" in words and isinstance(trial, dict) and trial.get(key)))


def save(values: dict, path: Path) -> None:
    """Write resolved values as a recipe that `read` turns into the same run."""
    replace_text(Path(path), yaml.safe_dump(values, allow_unicode=True, width=119))


def read_yaml(path) -> dict:
    """The keys and values of a recipe as they are written; RecipeError if there are none."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except OSError as error:
        raise RecipeError(f"--config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"--config {path} must hold `key: value` lines, not a {type(values).__name__}")
    return values


def _check(values: dict, fields, where: str) -> None:
    """Refuse unknown keys and wrong types; each value then has its field's type."""
    for name, value in values.items():
        refuse_unknown(name, fields, where)
        values[name] = _typed(name, value, fields[name], where)


def refuse_unknown(name: str, fields, where: str) -> None:
    """Refuse a key that is not among the fields, and say which one may have been meant."""
    if name in GONE_KEYS:
        raise RecipeError(f"{where}: `{name}` is gone: {GONE_KEYS[name]}")
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1)
        raise RecipeError(f"{where}: unknown key `{name}`." + (f" Did you mean `{near[0]}`?" if near else ""))


def _typed(name: str, value, field, path: str):
    """A YAML value as its field wants it: argparse would convert strings only and wave through everything else."""
    kinds = {kind.strip() for kind in str(getattr(field.type, "__name__", field.type)).split("|")}
    if any(kind.startswith("list") for kind in kinds) and not isinstance(value, list | type(None)):
        return [value]
    numeric = kinds & {"int", "float"}
    if numeric and kinds <= {"int", "float", "NoneType", "None"} and value is not None:
        try:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
            if "float" in kinds:
                return number
            if number != int(number):
                raise ValueError
            return int(number)
        except (ValueError, TypeError, OverflowError):
            raise RecipeError(f"{path}: `{name}: {value}` is no {' or '.join(sorted(numeric))}") from None
    return value
