"""The tokenizer stage: what it writes, twice the same, and what it leaves alone or refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from r1llama.data.tokenizer import check_tokenizer
from r1llama.training import tokenizer as tokenizer_stage
from r1llama.training.recipe import RecipeError

from .conftest import argv, json_lines, tiny_config, write_jsonl


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    sentence = "the cat sat on a mat and thought <think>about</think> 1234 mice, which it didn't catch"
    words = sentence.split()
    rows = [{"text": " ".join(words[(i * j) % len(words)] for j in range(40)) + f" {i}\n"} for i in range(120)]
    return write_jsonl(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture
def tokenizer_recipe(texts, tmp_path):
    return {"dataset_name": str(texts), "output_dir": str(tmp_path / "out"), "vocab_size": 300}


def test_it_writes_a_tokenizer_that_loads_beside_a_model(tokenizer_recipe, tmp_path):
    metrics = tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml"))
    tiny_config(AutoTokenizer.from_pretrained(tmp_path / "out")).save_pretrained(tmp_path / "out")  # as in a model
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    check_tokenizer(tokenizer)
    assert len(tokenizer) == metrics["vocab_size"] == 300
    assert (metrics["train_documents"], metrics["held_out_documents"]) == (118, 2)
    rows = json_lines(Path(tokenizer_recipe["dataset_name"]))
    held_out = [rows[49]["text"], rows[99]["text"]]
    tokens = sum(len(ids) for ids in tokenizer(held_out)["input_ids"])
    assert metrics["characters_per_token"] == pytest.approx(sum(map(len, held_out)) / tokens, abs=1e-4)
    assert metrics["characters_per_token"] > 1.5
    assert "<|im_end|>" in tokenizer.all_special_tokens


def test_no_merge_holds_a_piece_of_a_tag_or_crosses_words(tokenizer_recipe, tmp_path):
    tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml"))
    backend = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))
    merged = ["".join(pair) for pair in backend["model"]["merges"]]
    assert "Ġthe" in merged
    assert not [token for token in merged if set("<>/|") & set(token) or "Ġ" in token[1:] or "hink" in token]


def again_here(argv):
    tokenizer_stage.main(argv)


def again_in_another_process(argv):
    subprocess.run([sys.executable, "-m", "r1llama.training.tokenizer", *argv], check=True)


@pytest.mark.parametrize("again", [again_here, pytest.param(again_in_another_process, marks=pytest.mark.slow)])
def test_training_again_writes_the_same_bytes(tokenizer_recipe, tmp_path, again):
    tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml"))
    again([*argv(tokenizer_recipe, tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "again")])
    for file in (tmp_path / "out").iterdir():
        if file.name != "recipe.yaml":  # which names the directory
            assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_a_finished_one_is_left_alone_and_another_recipe_refused(tokenizer_recipe, tmp_path, monkeypatch):
    metrics = tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml"))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(tokenizer_stage, "load_dataset", None)  # nothing is read
    assert tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml")) == metrics
    with pytest.raises(RecipeError, match=r"trained with `vocab_size: 300`, not 320.*name another directory"):
        tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml", vocab_size=320))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before
    recipe = tmp_path / "out" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("on_error: stop\n", ""))  # as from a version without that key
    assert tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml")) == metrics


def test_an_interrupted_run_leaves_nothing_that_looks_finished(tokenizer_recipe, tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer_stage.recipe, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml"))
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out"]


def test_too_little_text_is_said(tokenizer_recipe, tmp_path, caplog):
    caplog.set_level("WARNING", logger="r1llama")
    data = write_jsonl(tmp_path / "few.jsonl", [{"text": "few words"}, {"text": "few words"}])
    changes = {"dataset_name": str(data), "vocab_size": 5000, "chat_template": None}
    metrics = tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml", **changes))
    assert metrics["vocab_size"] < 5000
    assert metrics["held_out_documents"] == 0
    assert "not `vocab_size: 5000`: no further pair of tokens occurs twice" in caplog.text
    assert "measured on the training texts" in caplog.text


def test_max_documents(tokenizer_recipe, tmp_path):
    metrics = tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml", max_documents=60))
    assert (metrics["train_documents"], metrics["held_out_documents"]) == (59, 1)


def test_a_stream_and_a_mixture_are_read_alike(tokenizer_recipe, tmp_path):
    source = tokenizer_recipe.pop("dataset_name")
    recipe = tokenizer_recipe | {"datasets": [{"path": source, "weight": 3}, {"path": source, "weight": 1}]}
    metrics = tokenizer_stage.main(argv(recipe, tmp_path / "r.yaml"))
    streamed = argv(recipe, tmp_path / "r.yaml", dataset_streaming=True, output_dir=str(tmp_path / "stream"))
    assert tokenizer_stage.main(streamed) == metrics
    assert metrics["train_documents"] > 120
    one, other = ((tmp_path / folder / "tokenizer.json").read_bytes() for folder in ("out", "stream"))
    assert one == other


def test_skipped_rows_are_listed_beside_the_tokenizer(tokenizer_recipe, tmp_path):
    data = tmp_path / "holes.jsonl"
    data.write_text('{"text": "few words"}\n{"text": \n{"text": "few words"}\n')
    changes = {"dataset_name": str(data), "on_error": "skip"}
    assert tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml", **changes))["train_documents"] == 2
    assert "holes.jsonl:2" in (tmp_path / "out" / "skipped_rows.txt").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 200}, "vocab_size=200: 256 bytes, 4 tags and 4 special tokens need at least 264"),
        ({"chat_template": "chatml"}, "chatml is neither a chat template of r1llama"),
        ({"output_dir": None}, "`output_dir` is missing"),
        ({"max_documents": 0}, "`max_documents: 0` must be above 0"),
        ({"learning_rate": 1.0}, "unknown key `learning_rate`"),
    ],
)
def test_refusals(tokenizer_recipe, tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml", **changes))
    assert not (tmp_path / "out").exists()


def test_a_directory_with_something_else_is_refused(tokenizer_recipe, tmp_path, model_dir):
    with pytest.raises(RecipeError, match="is not empty, and holds no tokenizer of this stage"):
        tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml", output_dir=str(model_dir)))


def test_rows_without_text_are_refused(tokenizer_recipe, tmp_path, problems):
    with pytest.raises(RecipeError, match="text"):
        tokenizer_stage.main(argv(tokenizer_recipe, tmp_path / "r.yaml", dataset_name=str(problems)))
    assert not (tmp_path / "out").exists()
