"""Rows of files, each with its line: what is malformed is named, wherever it stands, and costs no other row."""

import bz2
import gzip
import json
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1llama.data.lines import RowError, read_rows

GOOD = [{"text": f"row {n} ü"} for n in range(5)]
BAD = {
    "not JSON": b'{"text": ',
    "a row must be an object with columns, not [1]": b"[1]",
    "a row must be an object with columns, not {}": b"{}",
    "not UTF-8: unexpected end of data, byte 11": b'{"text": "\xc3',
    "not UTF-8: invalid start byte": b'{"text": "\xff"}',
    "not readable as JSON": b"[" * 100_000,
}


def read(path, **keywords):
    return list(read_rows(str(path), **keywords))


def lines_of(rows=GOOD):
    return [json.dumps(row, ensure_ascii=False).encode() for row in rows]


@pytest.mark.parametrize("said", BAD)
@pytest.mark.parametrize("place", [0, 2, 5])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_malformed_line_is_named_and_costs_no_other(said, place, end, tmp_path):
    lines = lines_of()
    lines.insert(place, BAD[said])
    (tmp_path / "a.jsonl").write_bytes(end.join(lines))
    rows = read(tmp_path / "a.jsonl")
    assert [number for number, _ in rows] == [1, 2, 3, 4, 5, 6]
    number, error = rows.pop(place)
    assert number == place + 1
    assert isinstance(error, RowError)
    assert said in str(error)
    assert [row for _, row in rows] == GOOD


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_marks_line_ends_and_compression(end, mark, compress, tmp_path):
    suffix = {gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}.get(compress, "")
    texts = {
        f"a.jsonl{suffix}": ((end * 2).join(line.decode() for line in lines_of()), [1, 3, 5, 7, 9]),
        f"a.json{suffix}": (json.dumps(GOOD, indent=2).replace("\n", end), [2, 5, 8, 11, 14]),
        f"a.txt{suffix}": ((end * 2).join(row["text"] for row in GOOD), [1, 3, 5, 7, 9]),
    }
    for name, (text, numbers) in texts.items():
        (tmp_path / name).write_bytes(compress((mark + text + end).encode()))
        assert read(tmp_path / name) == list(zip(numbers, GOOD, strict=True)), name


def test_a_file_that_was_cut_ends_with_an_error(tmp_path):
    whole = gzip.compress(b"\n".join(lines_of([{"text": str(n) * 50} for n in range(2000)])))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    *rows, (number, error) = read(tmp_path / "a.jsonl.gz")
    assert len(rows) > 100
    assert number == rows[-1][0] + 1
    assert "the file is damaged from here on" in str(error)


def test_a_line_of_ten_megabytes(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines_of([{"text": "x" * 10**7}, {"text": "y"}])) + b'\n{"text": "')
    rows = read(tmp_path / "a.jsonl")
    assert [len(row["text"]) for _, row in rows[:2]] == [10**7, 1]
    assert "not JSON" in str(rows[2][1])


@pytest.mark.parametrize(
    ("text", "lines", "said"),
    [
        ('[\n{"a": 1},\n{"a": }\n]', [2, 3], "Expecting value; the rest of the array cannot be read"),
        ('[\n{"a": 1}\n{"a": 2}]', [2, 3], "Expecting ',' delimiter"),
        ('[\n{"a": 1},\n', [2, 3], "Expecting value"),
        ('[\n{"a": 1},\n7,\n{"a": 2}]', [2, 3, 4], "with columns, not 7"),
        ("[1e]", [1, 1], "delimiter"),
    ],
)
def test_malformed_arrays(text, lines, said, tmp_path):
    (tmp_path / "a.json").write_text(text)
    rows = read(tmp_path / "a.json")
    assert [number for number, _ in rows] == lines
    assert any(isinstance(row, RowError) and said in str(row) for _, row in rows)


def test_paragraphs_and_documents(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\n\nfirst\r\nline\n\n \nsecond\n")
    assert read(tmp_path / "a.txt", sample_by="paragraph") == [(3, {"text": "first\nline"}), (7, {"text": "second"})]
    assert read(tmp_path / "a.txt", sample_by="document") == [(1, {"text": "first\nline\n\n \nsecond"})]
    (tmp_path / "a.txt").write_bytes(b"good\n\nbad\n\xff\n\ngood")
    rows = read(tmp_path / "a.txt", sample_by="paragraph")
    assert [number for number, _ in rows] == [1, 3, 6]
    assert "1 lines below" in str(rows[1][1])


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(rows=st.lists(st.dictionaries(text, st.none() | st.integers() | text, min_size=1)), array=st.booleans())
@settings(deadline=None, max_examples=60)
def test_what_json_writes_is_read_back(rows, array, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "a.json"
    written = json.dumps(rows, indent=1) if array else "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(written, encoding="utf-8", newline="")
    assert [row for _, row in read(path)] == rows
