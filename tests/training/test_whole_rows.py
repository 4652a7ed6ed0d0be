"""Rows that are too long: left out, refused or cut, in the open."""

import logging
import shutil

import pytest

from r1llama.training import sft
from r1llama.training.recipe import RecipeError
from tests.training.conftest import argv, assert_same_weights, json_lines, write_jsonl

# Byte tokens, and EOS: 4, 21, 4 and 31 of them
ROWS = [{"prompt": "1", "completion": "2" * count} for count in (2, 19, 2, 29)]


@pytest.fixture
def run(sft_recipe, tmp_path):
    """Trains on `ROWS` with `max_length: 20`; the tokens that the trainer counted in one epoch."""

    def run(rows=ROWS, **changes):
        data = write_jsonl(tmp_path / "rows.jsonl", rows)
        recipe = sft_recipe | {"dataset_name": str(data), "max_length": 20, "max_steps": 1} | changes
        sft.main(argv(recipe, tmp_path / "recipe.yaml", resume_from_checkpoint="false"))
        return json_lines(tmp_path / "out" / "metrics.jsonl")[0]["num_tokens"]

    return run


@pytest.mark.parametrize("packing", [False, True])
def test_they_are_left_out_by_default(packing, run, caplog):
    with caplog.at_level(logging.WARNING, logger="r1llama"):
        assert run(packing=packing) == 8
    assert "train: 2 of 4 rows have more than `max_length: 20` tokens (31 at most): left out" in caplog.text


def test_they_are_cut_if_the_recipe_says_so(run, caplog):
    with caplog.at_level(logging.WARNING, logger="r1llama"):
        assert run(overlong="truncate") == 48
    assert "cut there" in caplog.text


def test_they_are_refused_if_the_recipe_says_so(run):
    with pytest.raises(RecipeError, match=r"2 of 4 rows, the first with 21 tokens, more than `max_length: 20`"):
        run(overlong="stop")


def test_rows_that_fit_are_no_news(run, caplog):
    with caplog.at_level(logging.WARNING, logger="r1llama"):
        assert run(max_length=31, overlong="stop") == 60
    assert "max_length" not in caplog.text


def test_a_stream_leaves_them_out_too(run, caplog):
    with caplog.at_level(logging.WARNING, logger="r1llama"):
        assert run(dataset_streaming=True) == 8
    assert "train: 1 rows of more than 20 tokens left out so far" in caplog.text
    with pytest.raises(RecipeError, match="a row with 21 tokens"):
        run(dataset_streaming=True, overlong="stop")


@pytest.mark.parametrize("streaming", [False, True])
def test_none_left(streaming, run):
    with pytest.raises(RecipeError, match="every row has more than `max_length: 20` tokens"):
        run(ROWS[1::2], dataset_streaming=streaming)


def test_an_unknown_policy(run):
    with pytest.raises(RecipeError, match="`overlong: cut` must be one of drop, stop, truncate"):
        run(overlong="cut")


def test_a_stream_with_rows_left_out_resumes_exactly(sft_recipe, tmp_path):
    rows = [{"prompt": str(n), "completion": "2" * (n % 5 * 5 + 1)} for n in range(24)]
    changes = {
        "dataset_name": str(write_jsonl(tmp_path / "rows.jsonl", [*rows, *rows])),
        "dataset_streaming": True,
        "deduplicate": True,
        "max_length": 20,
        "per_device_train_batch_size": 2,
        "save_steps": 3,
        "max_steps": 12,  # 20 rows fit, so it ends in the second epoch
    }
    words = argv(sft_recipe, tmp_path / "sft.yaml", **changes)
    sft.main(words)
    for step in (3, 9):
        shutil.copytree(tmp_path / "out" / f"checkpoint-{step}", tmp_path / f"from-{step}" / f"checkpoint-{step}")
        sft.main([*words, "--output_dir", str(tmp_path / f"from-{step}")])
        assert_same_weights(tmp_path / "out", tmp_path / f"from-{step}")
