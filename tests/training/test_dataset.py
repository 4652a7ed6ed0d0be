"""The data keys of a recipe: shapes, mixtures, streams that equal files and continue exactly, and refusals."""

import gzip
import json
import logging
from collections import Counter
from itertools import islice

import pytest
import yaml
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from fsspec.compression import compr
from torch.utils.data import DataLoader

from r1llama.data.loading import DataError
from r1llama.training import sft
from r1llama.training.dataset import DataArguments, load_dataset
from r1llama.training.recipe import RecipeError
from tests.training.conftest import argv, assert_same_weights, write_jsonl

KINDS = ("demonstration", "problem")


def load(kind="text", split="train", output_dir=None, **keys):
    args = DataArguments(**{name: str(value) if name == "dataset_name" else value for name, value in keys.items()})
    args.output_dir = output_dir
    return load_dataset(args, split, kind)


def both(kind="text", **keys):
    """The rows as a file gives them, after making sure that a stream gives the same."""
    rows, stream = (load(kind, dataset_streaming=streaming, **keys) for streaming in (False, True))
    assert isinstance(rows, Dataset)
    assert isinstance(stream, IterableDataset)
    assert rows.features == stream.features
    assert list(stream) == rows.to_list()
    return rows.to_list()


def texts(folder, name, count):
    return write_jsonl(folder / f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(count)])


def test_every_format_gives_the_same_rows(tmp_path):
    rows = [{"text": f"row {n} ü"} for n in range(7)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "a.txt").write_text("\n".join(row["text"] for row in rows), encoding="utf-8")
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    write_jsonl(tmp_path / "folder" / "train-1.jsonl", rows[:3])
    write_jsonl(tmp_path / "folder" / "train-2.jsonl", rows[3:])
    write_jsonl(tmp_path / "folder" / "test.jsonl", rows[:1])
    for name in ("a.jsonl", "a.json", "b.jsonl.gz", "a.txt", "a.parquet", "saved", "folder"):
        assert both(dataset_name=tmp_path / name) == rows, name
    assert both(dataset_name=tmp_path / "folder", split="test") == rows[:1]
    assert load(dataset_name=tmp_path / "folder", split="train[2:4]").to_list() == rows[2:4]


def test_gsm8k_is_recognised(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": "1+1=<<1+1=2>>2\n#### 1,002"}])
    assert both("problem", dataset_name=path, system_prompt="")[0] == {
        "prompt": [{"role": "user", "content": "q"}],
        "solution": "1002",
    }
    completion = both("demonstration", dataset_name=path)[0]["completion"]
    assert completion[0]["content"] == "<think>\n1+1=2\n</think>\n<answer>1002</answer>"


def test_a_broken_solution_does_not_change_the_shape(tmp_path):
    rows = [{"question": "q", "answer": f"#### {n}"} for n in range(3)]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, {"question": "q", "answer": "4"}])
    with pytest.raises(RecipeError, match=r"a\.jsonl:4: `task: gsm8k`: no `####` line"):
        load("problem", dataset_name=path)


def test_an_edited_file_is_read_anew(tmp_path):
    path = texts(tmp_path, "a", 3)
    assert len(load(dataset_name=path)) == 3
    texts(tmp_path, "a", 4)
    assert len(load(dataset_name=path)) == 4


BROKEN = '{"text": "a"}\n{"text": 3}\n\n{"text": \n{"text": "b"}\n["c"]\n{"text": "\\ud800"}\n'


@pytest.mark.parametrize("streaming", [False, True])
def test_stop_names_the_line_and_skip_lists_them_all(streaming, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(BROKEN)
    with pytest.raises(RecipeError, match=r"`dataset_name`: .*a\.jsonl:2: `text` must be text, not the int 3"):
        list(load(dataset_name=path, dataset_streaming=streaming))
    keys = {"dataset_name": path, "on_error": "skip", "dataset_streaming": streaming, "output_dir": str(tmp_path)}
    for _ in range(2):  # the second time from the cache
        assert [row["text"] for row in load(**keys)] == ["a", "b"]
        listed = (tmp_path / "skipped_rows.txt").read_text().splitlines()
        assert [line.partition(": ")[0] for line in listed] == [f"{path}:{number}" for number in (2, 4, 6, 7)]


def test_a_row_that_breaks_off_late_in_a_stream(tmp_path):
    path = texts(tmp_path, "a", 1500)
    path.write_text(path.read_text() + '{"text": 1}\n')
    rows = load(dataset_name=path, dataset_streaming=True)
    with pytest.raises(DataError, match=r"a\.jsonl:1501: "):
        list(rows)
    with pytest.raises(RecipeError, match=r"a\.jsonl:1501: "):
        load(dataset_name=path)


@pytest.mark.parametrize("name", ["a.parquet", "saved"])
def test_rows_without_lines_are_named_by_their_number(name, tmp_path):
    rows = Dataset.from_list([{"text": "a"}, {"text": ""}, {"text": "b"}])
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    with pytest.raises(RecipeError, match=rf"{name}: row 1 \(from 0\): `text` must be text"):
        load(dataset_name=tmp_path / name)
    assert both(dataset_name=tmp_path / name, on_error="skip") == [{"text": "a"}, {"text": "b"}]


def test_columns_keep_the_type_of_the_first_rows(tmp_path):
    rows = [{"prompt": "q", "level": n} for n in range(1200)]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, {"prompt": "q", "level": "hard"}])
    with pytest.raises(RecipeError, match=r"a\.jsonl:1201: `level` is no int64, as in the first rows"):
        load("problem", dataset_name=path)
    write_jsonl(path, [*rows, {"prompt": "q", "more": 1}])
    with pytest.raises(RecipeError, match=r":1201: the column `more` appears here first"):
        load("problem", dataset_name=path)
    write_jsonl(path, [{"prompt": "q", "level": 1}, {"prompt": "q", "level": "hard"}])
    with pytest.raises(RecipeError, match=r":2: `level` is no int64"):
        load("problem", dataset_name=path)


def test_shares_of_a_mixture(tmp_path):
    sources = [{"path": str(texts(tmp_path, name, 3000)), "weight": w} for name, w in (("a", 6), ("b", 3), ("c", 1))]
    rows = [row["text"] for row in both(datasets=sources)]
    assert len(set(rows)) == len(rows)  # no row twice
    assert len(rows) > 4500  # until a has no more: about 3000 / 0.6
    shares = Counter(row[0] for row in rows)
    for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        assert abs(shares[name] / len(rows) - share) < 0.02
        assert [row for row in rows if row[0] == name] == [f"{name} {n}" for n in range(shares[name])]
    args = DataArguments(datasets=sources)
    args.seed = 43
    other = load_dataset(args, "train", "text")["text"]
    assert other != rows
    assert load_dataset(args, "train", "text")["text"] == other


def test_without_weights_the_sources_follow_each_other(tmp_path):
    sources = [{"path": str(texts(tmp_path, name, 3)), "test_split": "train[:1]"} for name in "ab"]
    assert [row["text"] for row in both(datasets=sources)] == ["a 0", "a 1", "a 2", "b 0", "b 1", "b 2"]
    assert load(datasets=sources, split="test")["text"] == ["a 0", "b 0"]


def test_sources_of_different_shapes_become_one(tmp_path):
    alpaca = write_jsonl(tmp_path / "a.jsonl", [{"instruction": "q", "output": "a"}])
    pairs = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "q", "completion": "a"}])
    sources = [{"path": str(alpaca), "system_prompt": "s"}, {"path": str(pairs), "system_prompt": "s"}]
    one, other = both("demonstration", datasets=sources)
    assert one == other
    with pytest.raises(RecipeError, match=r"mixes shapes: .*gives chat `prompt`, .*gives text `prompt`"):
        load("demonstration", datasets=[{"path": str(alpaca)}, {"path": str(pairs)}])


@pytest.mark.parametrize("keys", [{}, {"deduplicate": True}, {"decontaminate": ["tests.jsonl"]}])
@pytest.mark.parametrize("weights", [(None, None), (2, 1)])
def test_a_stream_continues_exactly(keys, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "tests.jsonl", [{"prompt": "b 3"}])
    a = write_jsonl(tmp_path / "a.jsonl", [{"text": f"a {n % 11}"} for n in range(30)])
    (tmp_path / "b.txt").write_text("".join(f"b {n % 7}\n" for n in range(20)))
    paths = zip((str(a), str(tmp_path / "b.txt")), weights, strict=True)
    keys["datasets"] = [{"path": path} | ({"weight": weight} if weight else {}) for path, weight in paths]
    rows = both(**keys)
    for place in (0, 1, 9, len(rows) - 1):
        stream = load(dataset_streaming=True, **keys)
        before = list(islice(stream, place))
        state = json.loads(json.dumps(stream.state_dict())) if place else None
        again = load(dataset_streaming=True, **keys)
        again.load_state_dict(state)
        assert before + list(again) == rows


@pytest.mark.parametrize("name", ["files", "files/a.parquet", "saved"])
def test_a_stream_of_several_files_continues_exactly(name, tmp_path):
    rows = Dataset.from_list([{"conversations": [{"content": f"q {n}"}, {"content": "a"}]} for n in range(40)])
    rows.save_to_disk(tmp_path / "saved", num_shards=3)
    (tmp_path / "files").mkdir()
    rows.to_parquet(tmp_path / "files" / "a.parquet")
    rows.to_parquet(tmp_path / "files" / "b.parquet")
    keys = {"kind": "demonstration", "dataset_name": tmp_path / name}
    rows = both(**keys)
    for place in (1, 13, 39):
        stream = load(dataset_streaming=True, **keys)
        before = list(islice(stream, place))
        again = load(dataset_streaming=True, **keys)
        again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        assert before + list(again) == rows


@pytest.mark.parametrize("deduplicate", [False, True])
def test_processes_and_workers_share_a_stream(deduplicate, tmp_path):
    for name in "abcd":
        texts(tmp_path, name, 5)
    stream = load(dataset_name=tmp_path, dataset_streaming=True, deduplicate=deduplicate)
    rows = sorted(row["text"] for row in stream)
    assert len(rows) == 20
    parts = [split_dataset_by_node(stream, rank, 2) for rank in range(2)]
    assert sorted(row["text"] for part in parts for row in part) == rows
    assert sorted(row["text"] for row in DataLoader(stream, batch_size=None, num_workers=2)) == rows


def test_cleaning_is_for_training_rows_and_counted(tmp_path, caplog):
    problems = tmp_path / "problems"
    problems.mkdir()
    write_jsonl(problems / "train.jsonl", [{"question": "a 1", "answer": "2"}])
    write_jsonl(problems / "test.jsonl", [{"question": "b 1", "answer": "2"}])
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"prompt": text, "completion": "3"} for text in ("a 1", "B  1", "c", "C")]
    write_jsonl(data / "train.jsonl", rows)
    write_jsonl(data / "test.jsonl", rows)
    keys = {"dataset_name": data, "deduplicate": True, "decontaminate": [str(problems)]}
    with caplog.at_level(logging.INFO, logger="r1llama"):
        assert [row["prompt"] for row in both("demonstration", **keys)] == ["a 1", "c"]
    assert "decontaminate: 1 of 4 rows" in caplog.text
    assert "deduplicate: 1 of 3 rows" in caplog.text
    assert both("demonstration", split="test", **keys) == rows
    keys["decontaminate"] = [{"path": str(problems), "split": "train"}]
    assert [row["prompt"] for row in both("demonstration", **keys)] == ["B  1", "c"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "`dataset_name` is missing"),
        ({"dataset_name": "a", "datasets": [{"path": "b"}]}, "`dataset_name` and `datasets` are both set"),
        ({"datasets": [{"path": "b"}], "task": "gsm8k"}, "`task` and `datasets` are both set"),
        ({"datasets": ["b"]}, r"`datasets\[0\]` must be a mapping with a `path`, not 'b'"),
        ({"datasets": [{"name": "b"}]}, r"`datasets\[0\]` must be a mapping with a `path`"),
        ({"datasets": [{"path": "b", "wieght": 1}]}, r"datasets\[0\]: unknown key `wieght`. Did you mean `weight`?"),
        ({"datasets": [{"path": "b", "weight": 0}]}, "`weight: 0` must be a number above 0"),
        ({"datasets": [{"path": "b", "weight": 1}, {"path": "c"}]}, "give every entry a `weight`, or none"),
        ({"datasets": [{"path": "./b.jsonl"}]}, r"`datasets\[0\]`: ./b.jsonl does not exist"),
        ({"dataset_name": "a", "on_error": "ignore"}, "`on_error: ignore` must be stop or skip"),
        ({"dataset_name": "a", "sample_by": "page"}, "`sample_by: page` must be one of line, paragraph, document"),
        ({"dataset_name": "a", "task": "gsm9k"}, "`task: gsm9k`: there is no module r1llama.tasks.gsm9k"),
        ({"dataset_name": "a", "task": "arithmetic"}, "has no function `text`"),
    ],
)
def test_refusals(keys, said):
    with pytest.raises(RecipeError, match=said):
        load(**keys)


@pytest.mark.skipif("zstd" in compr, reason="zstandard is installed")
def test_a_compression_without_its_package(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(b"(\xb5/\xfd")
    with pytest.raises(RecipeError, match="pip install zstandard"):
        load(dataset_name=tmp_path / "a.jsonl.zst")


def test_rows_that_are_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(RecipeError, match=r"a\.jsonl has no rows"):
        load(dataset_name=tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": 1}\n')
    with pytest.raises(RecipeError, match=r"none of the first 2 rows can be used: .*:1: `text` must be text"):
        load(dataset_name=tmp_path / "a.jsonl", on_error="skip")
    path = texts(tmp_path, "b", 2)
    with pytest.raises(RecipeError, match="leave no row to train on"):
        load(dataset_name=path, decontaminate=[str(path)])
    with pytest.raises(RecipeError, match=r"`train\[:1\]`: a stream has no slices"):
        load(dataset_name=path, split="train[:1]", dataset_streaming=True)
    with pytest.raises(RecipeError, match="no entry of `datasets` has a `test_split`"):
        load(datasets=[{"path": str(path)}], split="test")


def test_a_mixture_in_a_recipe(sft_recipe, demonstrations, tmp_path):
    del sft_recipe["dataset_name"]
    other = write_jsonl(tmp_path / "other.jsonl", [{"input": f"{n}=", "target": str(n)} for n in range(9)])
    sources = [
        {"path": str(demonstrations), "weight": 2, "test_split": "train[:2]"},
        {"path": str(other), "weight": 1},
    ]
    changes = {"datasets": sources, "deduplicate": True, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    sft.main(argv(sft_recipe, tmp_path / "sft.yaml", **changes))
    saved = tmp_path / "out" / "recipe.yaml"
    assert yaml.safe_load(saved.read_text())["datasets"] == sources
    sft.main(["--config", str(saved), "--output_dir", str(tmp_path / "again")])
    assert_same_weights(tmp_path / "out", tmp_path / "again")
    with pytest.raises(RecipeError, match=r"unknown key `deduplicat`\. Did you mean `deduplicate`"):
        sft.main(argv(sft_recipe, tmp_path / "sft.yaml", deduplicat=True))
