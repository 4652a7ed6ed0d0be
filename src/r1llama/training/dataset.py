"""The data of a recipe: which keys name it, and what becomes of them.

- `DataArguments`: the keys
- `load_dataset`: one split, ready for the stage

A dataset is named by `dataset_name`, or by `datasets`, a list of sources that are mixed:

    datasets:
      - path: data/textbooks.jsonl        # as dataset_name
        weight: 3
      - path: openai/gsm8k
        name: main                        # as dataset_config
        split: train
        test_split: test                  # evaluated on, if eval_strategy is set
        task: gsm8k
        weight: 1

With weights, rows are drawn at random from the sources in these proportions, from `seed`, in the order of each source,
until one has no row left (`datasets.interleave_datasets`); without, the sources follow each other.
"""

import dataclasses
import hashlib
import importlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset, IterableDataset, List, concatenate_datasets, interleave_datasets

from r1llama.data.cleaning import TEXTS, Overlap, distinct, texts_of, uncontaminated
from r1llama.data.lines import SAMPLE_BY, RowError
from r1llama.data.loading import DataError, SplitError, is_empty, load_rows
from r1llama.data.shapes import ShapedRows
from r1llama.training.recipe import RecipeError, refuse_unknown

log = logging.getLogger("r1llama")


@dataclass
class DataArguments:
    """The keys of a recipe that name its data and say what becomes of it."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, or local path: a .jsonl, .json, .txt or .parquet file (.gz and the like too), a "
            "directory of them, or one written by `save_to_disk`."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on; slices work."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "Split to evaluate on, if eval_strategy is set."}
    )
    datasets: list[dict] | None = field(
        default=None,
        metadata={
            "help": "Sources to mix, in place of dataset_name: mappings with `path`, and as needed `name`, "
            "`data_files`, `split`, `test_split`, `task`, `system_prompt`, `sample_by` and `weight`."
        },
    )
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Read the rows while training, instead of once before it."}
    )
    sample_by: str = field(
        default="line",
        metadata={"help": "What a row of a .txt file is: line, paragraph (blank lines between) or document (a file)."},
    )
    on_error: str = field(
        default="stop",
        metadata={
            "help": "At a row that cannot be used: stop, or skip it and list it in output_dir/skipped_rows.txt. Both "
            "name file and line."
        },
    )
    deduplicate: bool = field(
        default=False,
        metadata={
            "help": "Leave out rows to train on whose texts repeat an earlier row's, see r1llama.data.cleaning."
        },
    )
    decontaminate: list[str] | None = field(
        default=None,
        metadata={
            "help": "Evaluation sets (local paths or hub ids; their split test, or else train; or mappings as in "
            "`datasets`): rows to train on that share 8 words in a row with a problem of theirs are left out."
        },
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "Module that turns raw rows into prompts: a name in r1llama.tasks, such as gsm8k, or a dotted "
            "path. Unset or empty: the rows have one of the shapes of r1llama.data.shapes."
        },
    )
    system_prompt: str | None = field(
        default=None,
        metadata={
            "help": "System message of every chat prompt, in place of the row's own; plain-text prompts become chats. "
            "Unset: the task's or the row's own, or none; empty: none."
        },
    )
    # Keys of the trainer's own config that matter here: `recipe.read` fills them in.
    output_dir: str | None = field(init=False, default=None)
    seed: int = field(init=False, default=42)
    dataset_text_field: str = field(init=False, default="text")


@dataclass
class Source:
    """One entry of `datasets`."""

    path: str
    name: str | None = None
    data_files: str | list[str] | None = None
    split: str = "train"
    test_split: str | None = None
    task: str | None = None
    system_prompt: str | None = None
    sample_by: str = "line"
    weight: float | None = None


def sources_of(args: DataArguments) -> list[Source]:
    """The sources that a recipe names.

    Raises:
        RecipeError: None or two ways of naming them, an entry with an unknown key, a weight that is none.
    """
    if not args.datasets:
        if not args.dataset_name:
            raise RecipeError("`dataset_name` is missing: set it, or `datasets`, in the recipe or on the command line")
        test = args.dataset_test_split
        shared = {"task": args.task, "system_prompt": args.system_prompt, "sample_by": args.sample_by}
        sources = [Source(args.dataset_name, args.dataset_config, None, args.dataset_train_split, test, **shared)]
    else:
        for key in ("dataset_name", "dataset_config", "task", "system_prompt"):
            if getattr(args, key):
                raise RecipeError(f"`{key}` and `datasets` are both set: say it in each entry of `datasets`")
        sources = [_source(entry, f"datasets[{number}]") for number, entry in enumerate(args.datasets)]
        weighted = [source.weight is not None for source in sources]
        if any(weighted) and not all(weighted):
            raise RecipeError("`datasets`: give every entry a `weight`, or none")
    for source in sources:
        if source.sample_by not in SAMPLE_BY:
            raise RecipeError(f"`sample_by: {source.sample_by}` must be one of {', '.join(SAMPLE_BY)}")
    if args.on_error not in ("stop", "skip"):
        raise RecipeError(f"`on_error: {args.on_error}` must be stop or skip")
    return sources


def _source(entry, where: str) -> Source:
    if not isinstance(entry, dict) or not entry.get("path"):
        raise RecipeError(f"`{where}` must be a mapping with a `path`, not {entry!r}")
    for key in entry:
        refuse_unknown(key, {field.name for field in dataclasses.fields(Source)}, where)
    weight = entry.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise RecipeError(f"`{where}`: `weight: {weight}` must be a number above 0")
    return Source(**entry)


def load_dataset(args: DataArguments, split: str, kind: str) -> Dataset | IterableDataset:
    """One split, with its sources mixed, and tasks and system prompts applied.

    Args:
        args: The recipe's data keys.
        split: `args.dataset_train_split` or `args.dataset_test_split`. (With `datasets`: each entry's `split` or
            `test_split`; the latter are not mixed but follow each other.)
        kind: What the rows become: `problem` (prompt, and solution and other columns for the rewards),
            `demonstration` (prompt and completion, or messages, or text) or `text`.

    Returns:
        A Dataset; with `dataset_streaming`, an IterableDataset with the same rows in the same order.

    Raises:
        RecipeError: No such data, or none that this kind can be made of; with `on_error: stop`, a row that cannot be
            used (on a stream, while it is iterated, as DataError).
    """
    sources = sources_of(args)
    is_test = bool(args.datasets) and split == args.dataset_test_split and split != args.dataset_train_split
    if is_test:
        sources = [dataclasses.replace(source, split=source.test_split) for source in sources if source.test_split]
        if not sources:
            raise RecipeError("`eval_strategy` is set, but no entry of `datasets` has a `test_split`")
    elif not args.datasets:
        sources[0].split = split
    with PartialState().main_process_first():
        parts = []
        for number, source in enumerate(sources):
            try:
                parts.append(_load(args, source, kind))
            except DataError as error:
                raise RecipeError(
                    f"`{f'datasets[{number}]' if args.datasets else 'dataset_name'}`: {error}"
                ) from error
        weights = None if is_test else [source.weight for source in sources]
        rows = _mixed(parts, weights, [source.path for source in sources], args.seed)
        return _cleaned(rows, args) if split == args.dataset_train_split else rows


def _load(args: DataArguments, source: Source, kind: str):
    named_task = TaskRows(source.task, kind, source.system_prompt) if source.task else None

    def prepare(first_rows: list[dict]):
        if named_task:
            return named_task
        solved = sum("question" in row and "####" in str(row.get("answer")) for row in first_rows)
        if kind != "text" and 2 * solved > len(first_rows):
            log.info("%s: rows of GSM8K, read with `task: gsm8k`", source.path)
            return TaskRows("gsm8k", kind, source.system_prompt)
        columns = {name: None for row in first_rows for name in row}
        return ShapedRows.recognise(columns, kind, args.dataset_text_field, source.system_prompt)

    listed = None
    if args.output_dir and args.on_error == "skip" and PartialState().is_main_process:
        listed = Path(args.output_dir) / "skipped_rows.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
    return load_rows(
        source.path,
        source.name,
        source.split,
        prepare,
        data_files=source.data_files,
        streaming=args.dataset_streaming,
        sample_by=source.sample_by,
        on_error=args.on_error,
        skipped=listed,
    )


def _mixed(parts: list, weights: list[float | None] | None, names: list[str], seed: int):
    if len(parts) == 1:
        return parts[0]
    for name, part in zip(names, parts, strict=True):
        for column in ("prompt", "completion", "messages", "text", "input_ids"):
            here, there = ((p.features or {}).get(column) for p in (part, parts[0]))
            if here != there:
                raise RecipeError(
                    f"`datasets` mixes shapes: {names[0]} gives {_described(parts[0])}, {name} gives "
                    f"{_described(part)}; text prompts become chats with a `system_prompt`"
                )
    if weights is None or weights[0] is None:
        return concatenate_datasets(parts)
    shares = [weight / sum(weights) for weight in weights]
    mixture = interleave_datasets(parts, probabilities=shares, seed=seed, stopping_strategy="first_exhausted")
    for name, part, share in zip(names, parts, shares, strict=True):
        rows = f" of {len(part)} rows" if isinstance(part, Dataset) else ""
        log.info("mixture: %.1f %% from %s%s", 100 * share, name, rows)
    if isinstance(mixture, Dataset):
        log.info("mixture: %d rows, until the first source has no more", len(mixture))
    return mixture


def _cleaned(rows, args: DataArguments):
    """Without evaluation problems, then without duplicates: of those that remain."""
    if args.decontaminate:
        problems = [text for entry in args.decontaminate for text in _problems(entry)]
        rows = uncontaminated(rows, Overlap(problems))
    if args.deduplicate:
        rows = distinct(rows, (*TEXTS, args.dataset_text_field))
    if is_empty(rows):
        raise RecipeError("`decontaminate` and `deduplicate` leave no row to train on")
    return rows


def _problems(entry: str | dict):
    """The texts of the problems of an evaluation set."""
    source = _source({"path": entry} if isinstance(entry, str) else entry, "decontaminate")

    def prepare(first_rows: list[dict]):
        columns = {name for row in first_rows for name in row}
        kind = "text" if "text" in columns and "prompt" not in columns else "problem"
        return TaskRows(source.task, "problem") if source.task else ShapedRows.recognise(columns, kind)

    splits = [source.split] if isinstance(entry, dict) and "split" in entry else ["test", "train"]
    for split in splits:
        try:
            rows = load_rows(source.path, source.name, split, prepare, data_files=source.data_files)
        except SplitError as error:
            if split == splits[-1]:
                raise RecipeError(f"`decontaminate`: {error}") from error
        except DataError as error:
            raise RecipeError(f"`decontaminate`: {error}") from error
        else:
            log.info("decontaminate: %d problems of %s, split `%s`", len(rows), source.path, split)
            for row in rows:
                yield from texts_of(row, ("prompt", "text"), system=False)
            return


def _described(part) -> str:
    kinds = {name: "chat" if isinstance(kind, List) else "text" for name, kind in part.features.items()}
    return ", ".join(f"{kind} `{name}`" for name, kind in kinds.items())


@dataclass
class TaskRows:
    """Turns raw rows into rows of one kind with a task's function of that name."""

    task: str
    kind: str
    system_prompt: str | None = None

    def __post_init__(self):
        path = self.task if "." in self.task else f"r1llama.tasks.{self.task}"
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as error:
            raise RecipeError(f"`task: {self.task}`: there is no module {path}") from error
        if not hasattr(module, self.kind):
            raise RecipeError(f"`task: {self.task}`: {path} has no function `{self.kind}`")
        self.function = getattr(module, self.kind)
        # Part of what caches are named after: an edited task makes its rows anew.
        self.code = hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()

    def __call__(self, row: dict) -> dict:
        keywords = {} if self.system_prompt is None else {"system_prompt": self.system_prompt}
        try:
            return self.function(row, **keywords)
        except KeyError as error:
            said = f"needs the column {error}, but the row has {', '.join(row)}"
            raise RowError(f"`task: {self.task}` {said}") from error
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            raise RowError(f"`task: {self.task}`: {error}") from error
