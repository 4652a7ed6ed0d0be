"""Rows from a hub id or a local path, through `datasets`, with errors that name the file and the line."""

import json
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

FORMATS = (".jsonl", ".json", ".parquet")


class DataError(ValueError):
    """Data that cannot be read or used; the message names the file, the line or the column, and the cure."""


def load_rows(name: str, config: str | None = None, split: str = "train") -> Dataset:
    """Load one split.

    Args:
        name: Hub id, or local path: a .jsonl, .json or .parquet file (its only split is `train`), a directory of
            such files, or a directory written by `save_to_disk`.
        config: Configuration of a hub dataset, such as `main`.
        split: Name of the split; `datasets` slicing such as `train[:5%]` works.

    Raises:
        DataError: Nothing there, a malformed line (file and line number), no such split, no rows.
    """
    path = Path(name).expanduser()
    try:
        if path.is_file():
            if path.suffix not in FORMATS:
                raise DataError(f"{path}: cannot read {path.suffix or 'this'} files; use {', '.join(FORMATS)}")
            if path.stat().st_size == 0:
                raise DataError(f"{path} is empty")
            # By its directory: `load_dataset("json", ...)` would report its use over the network.
            rows = load_dataset(str(path.absolute().parent), data_files=path.name, split=split)
        elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            rows = load_from_disk(str(path))
            if isinstance(rows, DatasetDict):
                if split not in rows:
                    raise DataError(f"{path} has no split `{split}`: it has {', '.join(rows)}")
                rows = rows[split]
        elif path.is_dir():
            rows = load_dataset(str(path), name=config, split=split)
        elif looks_local(name):
            raise DataError(f"{name} does not exist (looked at {path.absolute()})")
        else:
            rows = load_dataset(name, name=config, split=split)
    except DataError:
        raise
    except DatasetNotFoundError as error:
        raise DataError(f"{name} is neither a local path nor a dataset that the hub knows: {error}") from error
    except (DatasetGenerationError, ValueError, TypeError, OSError, IndexError) as error:
        for file in [path] if path.is_file() else sorted(path.glob("**/*.jsonl")):
            if file.suffix == ".jsonl":
                _find_bad_line(file)
        cure = "" if path.exists() else ". A local file or directory needs no network"
        raise DataError(f"{name}, split `{split}`: {error.__cause__ or error}{cure}") from error
    return rows


def looks_local(name: str) -> bool:
    """Whether a name can only be a path: a hub id is `name` or `owner/name`, without a file suffix."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in FORMATS


def _find_bad_line(file: Path) -> None:
    """Raise a DataError for the first line that no row can be made of."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line) if line.strip() else {}
            except json.JSONDecodeError as error:
                raise DataError(f"{file}:{number}: not JSON: {error.msg} at column {error.colno}") from None
            if not isinstance(row, dict):
                raise DataError(f"{file}:{number}: a line must be an object with columns, not a {type(row).__name__}")
