"""Rows of JSON, JSON Lines and text files, each with its line number, so that a malformed one can be named or passed
over. (`datasets` reads these formats in blocks: its errors know no line, and one bad line costs the whole file.)

- `read_rows`: a file as (line number, row or RowError)
- `RowError`: what is wrong with one row
- `SUFFIXES`, `SAMPLE_BY`: the formats, and what a row of a text file is

Files are UTF-8, with or without a byte order mark, with LF or CRLF, plain or compressed (.gz, .bz2, .xz; .zst with the
package zstandard), local or at any address that fsspec opens.
"""

import codecs
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator

import fsspec

SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt")
SAMPLE_BY = ("line", "paragraph", "document")  # the names of `datasets`' own reader of text
SPACE = re.compile(r"[ \t\r\n]*")
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)  # a compressed file that was cut or changed


class RowError(ValueError):
    """What is wrong with one row; who reads it knows the place."""


def read_rows(file: str, sample_by: str = "line") -> Iterator[tuple[int, dict | RowError]]:
    """Read a file row by row; what cannot be read is a RowError in its place, and reading goes on after it.

    JSON is an array of objects (held in memory as a whole) or one object a line. An array cannot be read past its
    first syntax error: that error is then the last thing yielded.

    Args:
        file: Path or fsspec address.
        sample_by: What a row of a text file is: a `line`, a `paragraph` (blank lines separate them) or the whole
            `document`. Blank lines are no rows.

    Yields:
        The number of the row's first line, from 1, and the row. A text row is `{"text": ...}`.
    """
    number = 0
    with fsspec.open(file, "rb", compression="infer") as raw:
        lines = ((n, line.removeprefix(codecs.BOM_UTF8) if n == 1 else line) for n, line in enumerate(raw, start=1))
        try:
            if _suffix(file) == ".txt":
                rows = ((n, _text(chunk)) for n, chunk in _chunks(lines, sample_by) if chunk.strip())
            elif _suffix(file) == ".json" and _starts_array(raw):
                rows = _array(raw.read())
            else:
                rows = ((n, _json(line)) for n, line in lines if line.strip())
            for number, row in rows:
                yield number, row
        except DAMAGED as error:
            yield number + 1, RowError(f"the file is damaged from here on: {error}")


def _suffix(file: str) -> str:
    """`.json` for `rows.json.gz`."""
    return next((suffix for suffix in SUFFIXES if suffix in file.rpartition("/")[2].lower()), "")


def _chunks(lines: Iterable[tuple[int, bytes]], sample_by: str) -> Iterator[tuple[int, bytes]]:
    """Lines joined to paragraphs or to one document, with the number of the first."""
    if sample_by == "line":
        yield from lines
        return
    start, chunk = 1, []
    for number, line in lines:
        if sample_by == "paragraph" and not line.strip():
            yield start, b"".join(chunk)
            start, chunk = number + 1, []
        else:
            chunk.append(line)
    yield start, b"".join(chunk)


def _text(chunk: bytes) -> dict | RowError:
    try:
        return {"text": chunk.decode("utf-8").replace("\r\n", "\n").strip("\n")}
    except UnicodeDecodeError as error:
        return _not_utf8(chunk, error)


def _json(line: bytes) -> dict | RowError:
    try:
        return _object(json.loads(line.rstrip(b"\r\n").decode("utf-8")))
    except UnicodeDecodeError as error:
        return _not_utf8(line, error)
    except json.JSONDecodeError as error:
        return RowError(f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        return RowError(f"not readable as JSON: {error}")


def _object(row) -> dict | RowError:
    if isinstance(row, dict) and row:
        return row
    return RowError(f"a row must be an object with columns, not {json.dumps(row)[:40]}")


def _not_utf8(chunk: bytes, error: UnicodeDecodeError) -> RowError:
    below = chunk.count(b"\n", 0, error.start)
    return RowError(f"not UTF-8: {error.reason}, {f'{below} lines below, ' if below else ''}byte {error.start + 1}")


def _starts_array(raw) -> bool:
    start = raw.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()
    raw.seek(0)
    return start.startswith(b"[")


def _array(raw: bytes) -> Iterator[tuple[int, dict | RowError]]:
    line, counted = 1, 0
    try:
        text = raw.decode("utf-8-sig")
        at = _past_space(text, text.index("[") + 1)
        while text[at : at + 1] != "]":
            line, counted = line + text.count("\n", counted, at), at
            row, end = json.JSONDecoder().raw_decode(text, at)
            yield line, _object(row)
            end = _past_space(text, end)
            if text[end : end + 1] not in ("]", ","):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
            at = _past_space(text, end + 1) if text[end] == "," else end
    except UnicodeDecodeError as error:
        yield raw.count(b"\n", 0, error.start) + 1, RowError(f"not UTF-8: {error.reason}; the array cannot be read")
    except (ValueError, RecursionError) as error:
        message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        yield getattr(error, "lineno", line), RowError(f"not JSON: {message}; the rest of the array cannot be read")


def _past_space(text: str, at: int) -> int:
    return SPACE.match(text, at).end()
