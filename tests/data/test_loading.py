"""Rows from files and directories, and what is said when they cannot be read."""

import json

import pytest
from datasets import Dataset, DatasetDict

from r1llama.data.loading import DataError, load_rows, looks_local

ROWS = [{"prompt": f"{n}+1=", "solution": str(n + 1)} for n in range(4)]


def write(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_files(tmp_path):
    write(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.parquet"):
        assert load_rows(str(tmp_path / name)).to_list() == ROWS, name


def test_directories(tmp_path):
    files, saved, splits = tmp_path / "files", tmp_path / "saved", tmp_path / "splits"
    files.mkdir()
    write(files / "train.jsonl")
    write(files / "test.jsonl", ROWS[:1])
    Dataset.from_list(ROWS).save_to_disk(saved)
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(splits)
    assert load_rows(str(files)).to_list() == ROWS
    assert load_rows(str(files), split="test").to_list() == ROWS[:1]
    assert load_rows(str(saved)).to_list() == ROWS
    assert load_rows(str(splits), split="test").to_list() == ROWS[:1]


def test_slices(tmp_path):
    assert load_rows(str(write(tmp_path / "a.jsonl")), split="train[:2]").to_list() == ROWS[:2]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', "a.jsonl:3: not JSON"),
        ("a.jsonl", '{"a": 1}\n"b"\n', "a.jsonl:2: a row must be an object"),
        ("a.jsonl", "", "is empty"),
        ("a.csv", "hello", "cannot read .csv files"),
        ("a.parquet", "not parquet", "a.parquet"),
    ],
)
def test_what_is_wrong_is_named(name, text, said, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        load_rows(str(path))


def test_a_bad_line_in_a_directory(tmp_path):
    write(tmp_path / "train.jsonl")
    (tmp_path / "test.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"test\.jsonl:1: not JSON"):
        load_rows(str(tmp_path), split="test")


def test_a_missing_split_or_file(tmp_path):
    path = write(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="train"):
        load_rows(str(path), split="test")
    with pytest.raises(DataError, match="does not exist"):
        load_rows(str(tmp_path / "b.jsonl"))
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match="no split `test`: it has train"):
        load_rows(str(tmp_path / "splits"), split="test")


def test_no_rows(tmp_path):
    Dataset.from_dict({"prompt": [""]}).select([]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, split `train`: .* no data"):
        load_rows(str(tmp_path / "a.parquet"))


def test_what_can_only_be_a_path():
    assert all(map(looks_local, ["./a", "/a/b", "~/a", "a/b/c", "rows.jsonl"]))
    assert not any(map(looks_local, ["gsm8k", "openai/gsm8k"]))
