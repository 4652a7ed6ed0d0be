"""Rows from a hub id or a local path, as a `Dataset` or, streamed, an `IterableDataset`; errors name file and line.

- `load_rows`: one split of one source, each row passed through a function
- `DataError`: data that cannot be read or used; `SplitError`: they lack a split

JSON, JSON Lines and text files are read by `r1llama.data.lines`, everything else by `datasets`. Both ways of loading
see the same rows in the same order: a stream is a function of its files, so that reading it again from the start, or
`load_state_dict`, continues it exactly.
"""

import hashlib
import logging
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    ReadInstruction,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.fingerprint import Hasher
from fsspec.compression import compr

from r1llama.data import lines
from r1llama.data.lines import SUFFIXES, RowError, read_rows

log = logging.getLogger("r1llama")

FORMATS = (*SUFFIXES, ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
FIRST_ROWS = 1000  # as many tell the columns and their types
SHOWN = 10  # skipped rows named in the log; the file names all
ERROR = "_error"  # column of what is wrong with a row, where such rows are to be skipped
ARROW_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError)
# Part of what caches are named after: rows that other code made are not taken for this one's.
CODE = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in (__file__, lines.__file__)]


class DataError(ValueError):
    """Data that cannot be read or used; the message names the file, the line or the column, and the cure."""


class SplitError(DataError):
    """The dataset is there, but has no split of this name."""


def load_rows(
    name: str,
    config: str | None = None,
    split: str = "train",
    prepare: Callable[[list[dict]], Callable[[dict], dict] | None] = lambda first_rows: dict,
    *,
    data_files=None,
    streaming: bool = False,
    sample_by: str = "line",
    on_error: str = "stop",
    skipped: Path | None = None,
) -> Dataset | IterableDataset:
    """Load one split.

    Args:
        name: Hub id, or local path: a .jsonl, .json, .txt or .parquet file, compressed or not (its only split is
            `train`), a directory of such files, or a directory written by `save_to_disk`.
        config: Configuration of a hub dataset, such as `main`.
        split: Name of the split; `datasets` slicing such as `train[:5%]` works, but not on a stream.
        prepare: Given the first rows, returns what turns a raw row into a row (RowError: it cannot); None leaves all
            rows as they are.
        data_files: Files of a directory or hub dataset, as `datasets.load_dataset` takes them.
        streaming: Return an `IterableDataset`, which reads as it is iterated.
        sample_by: What a row of a text file is: `line`, `paragraph` or `document`.
        on_error: `stop` raises at the first row that cannot be used; `skip` leaves such rows out.
        skipped: File to append skipped rows to, a line each: file, line and reason.

    Raises:
        DataError: Nothing there, no such split, no rows; with `stop`, a row that cannot be used. While a stream is
            iterated it raises this too.
    """
    path = Path(name).expanduser()
    try:
        files = _line_files(name, path, config, data_files, split)
        if files is None:
            rows = _from_datasets(name, path, config, data_files, split, streaming)
            rows = _converted(rows, prepare, name, on_error)
        elif streaming and set(split) & set("[+"):
            raise DataError(f"`{split}`: a stream has no slices or sums of splits")
        else:
            rows = _from_lines(files, prepare, streaming, split, sample_by, on_error)
    except DataError:
        raise
    except DatasetNotFoundError as error:
        raise DataError(f"{name} is neither a local path nor a dataset that the hub knows: {error}") from error
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise DataError(f"{name}, split `{split}`: {error.__cause__ or error}") from error
    except (ValueError, TypeError, OSError, IndexError, ImportError) as error:
        if str(error).startswith("Unknown split"):  # so says `datasets`
            raise SplitError(f"{name}: {error}") from error
        cure = "" if path.exists() else ". A local file or directory needs no network"
        raise DataError(f"{name}, split `{split}`: {error.__cause__ or error}{cure}") from error
    if ERROR in (rows.column_names or ()):
        rows = _without_errors(rows, name, skipped)
    if is_empty(rows):
        raise DataError(f"{name}, split `{split}` has no rows")
    return rows


def is_empty(rows: Dataset | IterableDataset) -> bool:
    """Whether there is no row; the place in a stream stays as it is."""
    return next(iter(rows.take(1)), None) is None


def looks_local(name: str) -> bool:
    """Whether a name can only be a path: a hub id is `name` or `owner/name`, without a file suffix."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or _without_compression(name).endswith(FORMATS)


def _without_compression(name: str) -> str:
    return name[: name.rindex(".")] if name.endswith(COMPRESSIONS) else name


def _line_files(name, path: Path, config, data_files, split: str) -> dict[str, list[str]] | None:
    """Files of each split that `split` names, if they are local and `r1llama.data.lines` reads them; else None."""
    if path.is_file():
        if not _without_compression(path.name).endswith(FORMATS):
            raise DataError(f"{path}: cannot read {path.suffix or 'this'} files; use {', '.join(FORMATS)}")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
        found = {"train": [str(path.absolute())]}
        reader = "parquet" if _without_compression(path.name).endswith((".parquet", ".arrow")) else "lines"
    elif not path.exists():
        if looks_local(name):
            raise DataError(f"{name} does not exist (looked at {path.absolute()})")
        return None
    elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return None
    else:
        builder = load_dataset_builder(str(path), name=config, data_files=data_files)
        found = {str(key): list(files) for key, files in builder.config.data_files.items()}
        reader = "lines" if type(builder).__name__.startswith(("Json", "Text")) else "parquet"
    packed = [file for files in found.values() for file in files if file.endswith(".zst")]
    if reader == "lines" and packed and "zstd" not in compr:
        raise DataError(f"{packed[0]}: reading .zst needs a package: `pip install zstandard`")
    names = [part.partition("[")[0] for part in split.split("+")]
    for missing in set(names) - found.keys():
        raise SplitError(f"{name} has no split `{missing}`: it has {', '.join(sorted(found))}")
    return {key: found[key] for key in names} if reader == "lines" else None


def _from_datasets(name, path: Path, config, data_files, split: str, streaming: bool):
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        rows = load_from_disk(str(path))
        if isinstance(rows, DatasetDict):
            if split not in rows:
                raise SplitError(f"{path} has no split `{split}`: it has {', '.join(rows)}")
            rows = rows[split]
        return rows.to_iterable_dataset() if streaming else rows
    if path.is_file():
        # By its directory: `load_dataset("parquet", ...)` would report its use over the network.
        name, data_files = str(path.absolute().parent), path.name
    elif path.is_dir():
        name = str(path)
    return load_dataset(name, name=config, data_files=data_files, split=split, streaming=streaming)


def _converted(rows, prepare, name: str, on_error: str):
    """Rows of `datasets`, each passed through the function."""
    first = list(islice(rows, FIRST_ROWS))
    convert = prepare(first) if first else None
    if convert is None or convert is dict:
        return rows
    maker = _RowMaker(convert, on_error, ((f"{name}: row {n} (from 0)", row) for n, row in enumerate(first)))
    keywords = {}
    if isinstance(rows, Dataset):
        keywords["new_fingerprint"] = Hasher.hash([rows._fingerprint, maker, CODE])
    return rows.map(
        maker.indexed,
        with_indices=True,
        fn_kwargs={"name": name},
        remove_columns=rows.column_names or list(first[0]),
        features=maker.features,
        **keywords,
    )


def _from_lines(files, prepare, streaming: bool, split: str, sample_by: str, on_error: str):
    parts = {}
    for key in files:
        numbered = ((f"{file}:{number}", row) for file in files[key] for number, row in read_rows(file, sample_by))
        first = list(islice(numbered, FIRST_ROWS))
        if not first:
            raise DataError(f"{', '.join(files[key])} has no rows")
        raw = [row for _, row in first if not isinstance(row, RowError)]
        maker = _RowMaker(prepare(raw) if raw else dict, on_error, first)
        keywords = {"files": files[key], "sample_by": sample_by}
        if streaming:
            return IterableDataset.from_generator(maker.from_files, features=maker.features, gen_kwargs=keywords)
        stamps = [(file, Path(file).stat().st_size, Path(file).stat().st_mtime_ns) for file in files[key]]
        fingerprint = Hasher.hash([stamps, sample_by, maker, CODE])
        parts[key] = Dataset.from_generator(
            maker.from_files, features=maker.features, gen_kwargs=keywords, fingerprint=fingerprint
        )
    parts_of_split = ReadInstruction.from_spec(split).to_absolute({key: len(rows) for key, rows in parts.items()})
    return concatenate_datasets([parts[p.splitname].select(range(p.from_ or 0, p.to)) for p in parts_of_split])


class _RowMaker:
    """Makes rows with the columns and types that the first rows have.

    Args:
        convert: Raw row in, row out; RowError if it cannot.
        on_error: `stop` or `skip`.
        first: The first rows, each with its place or a RowError.

    Attributes:
        features: The columns; with `skip`, also `ERROR`.
    """

    def __init__(self, convert, on_error: str, first):
        self.convert, self.skip, self.types = convert, on_error == "skip", None
        rows, errors = [], []
        for place, row in first:
            made = self(row, place)
            errors.append(made.pop(ERROR)) if made.get(ERROR) else rows.append(made)
        if not rows:
            raise DataError(f"none of the first {len(errors)} rows can be used: {errors[0]}")
        self.types = {}
        for name in {name: None for row in rows for name in row if name != ERROR}:
            values = [row[name] for row in rows if row.get(name) is not None]
            try:
                kind = pa.infer_type(values)
            except ARROW_ERRORS:
                kind = pa.infer_type(values[:1])  # what does not fit it is found below, and its place named
            self.types[name] = pa.string() if pa.types.is_null(kind) else kind
        schema = pa.schema(self.types | ({ERROR: pa.string()} if self.skip else {}))
        self.features = Features.from_arrow_schema(schema)

    def __call__(self, row: dict | RowError, place: str) -> dict:
        """One row; with `stop`, a DataError that names its place if it cannot be used."""
        try:
            if isinstance(row, RowError):
                raise row
            made = self.convert(row)
            self._check(made)
        except RowError as error:
            if not self.skip:
                raise DataError(f"{place}: {error}") from None
            return dict.fromkeys(self.types or ()) | {ERROR: f"{place}: {error}"}
        if self.types is not None:
            made = {name: made.get(name) for name in self.types}
        return made | ({ERROR: None} if self.skip else {})

    def _check(self, row: dict) -> None:
        for name, value in row.items() if self.types else ():
            if name not in self.types:
                raise RowError(f"the column `{name}` appears here first, after {FIRST_ROWS} rows without it")
            try:
                if isinstance(value, str) and pa.types.is_string(self.types[name]):
                    value.encode("utf-8")  # quicker than Arrow; half a surrogate pair from a JSON escape fails
                else:
                    pa.array([value], self.types[name])
            except ARROW_ERRORS as error:
                raise RowError(f"`{name}` is no {self.types[name]}, as in the first rows: {error}") from None

    def indexed(self, row: dict, index: int, name: str) -> dict:
        return self(row, f"{name}: row {index} (from 0)")

    def from_files(self, files: list[str], sample_by: str):
        for file in files:
            for number, row in read_rows(file, sample_by):
                yield self(row, f"{file}:{number}")


class _SkipList:
    """Lists skipped rows in the log and in a file, each once."""

    def __init__(self, path: Path | None):
        self.path, self.seen = path, set()
        if path and path.exists():
            self.seen = set(path.read_text(encoding="utf-8").splitlines())
        self.left = SHOWN

    def is_usable(self, reason: str | None) -> bool:
        """False, and the reason is listed, unless there is none."""
        if reason is None:
            return True
        reason = " ".join(reason.split())
        if self.left:
            self.left -= 1
            log.warning("skipped %s%s", reason, "" if self.left else " (and more, which the log leaves out)")
        if self.path and reason not in self.seen:
            self.seen.add(reason)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(reason + "\n")
        return False


def _without_errors(rows, name: str, path: Path | None):
    listed = _SkipList(path)
    if isinstance(rows, Dataset):
        usable = [index for index, reason in enumerate(rows[ERROR]) if listed.is_usable(reason)]
        if len(usable) < len(rows):
            where = f", listed in {path}" if path else ""
            log.warning("%s: skipped %d of %d rows%s", name, len(rows) - len(usable), len(rows), where)
        return rows.select(usable).remove_columns(ERROR)
    return rows.filter(listed.is_usable, input_columns=[ERROR]).remove_columns(ERROR)
