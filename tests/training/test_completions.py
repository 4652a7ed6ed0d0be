"""The tables of a run's rollouts."""

import shutil

import pytest

from r1llama.training import grpo
from r1llama.training.recipe import RecipeError
from r1llama.training.stopping import RunStopped

from .conftest import argv, tables

REWARDS = ["tests.training.rewards.letter_share", "accuracy", "tests.training.rewards.unjudged"]


def test_rollouts_are_written_with_their_rewards(grpo_recipe, tmp_path):
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", log_completions_steps=2, reward_funcs=REWARDS))
    folder = tmp_path / "out" / "completions"
    assert sorted(path.name for path in folder.iterdir()) == [
        "completions_00002.parquet",
        "completions_00004.parquet",
    ]
    rows = tables(tmp_path / "out")
    assert [row["step"] for row in rows] == [2] * 8 + [4] * 8
    known = {"prompt", "completion", "letter_share", "accuracy_reward", "unjudged", "accuracy/reason", "advantage"}
    assert known < rows[0].keys()
    assert any(row["advantage"] for row in rows)
    for row in rows:
        assert row["unjudged"] is None
        assert row["accuracy_reward"] == 0
        assert isinstance(row["accuracy/reason"], str)
        assert 0 < row["tokens"] <= 12
        assert row["truncated"] == (row["tokens"] == 12)


def test_a_resumed_run_has_the_tables_of_an_uninterrupted_one(grpo_recipe, tmp_path):
    """What lies beyond the checkpoint goes, and what was being written; the tables before it stay."""
    changes = {"log_completions_steps": 1, "save_steps": 2}
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", **changes))
    before = tables(tmp_path / "out")
    interrupted = tmp_path / "interrupted"
    shutil.copytree(tmp_path / "out" / "completions", interrupted / "completions")
    shutil.copytree(tmp_path / "out" / "checkpoint-2", interrupted / "checkpoint-2")
    (interrupted / "completions" / "completions_00003.parquet").unlink()
    (interrupted / "completions" / "completions_00004.parquet").write_bytes(b"torn")
    (interrupted / "completions" / "completions_00005.parquet.part").write_bytes(b"half")
    first = interrupted / "completions" / "completions_00001.parquet"
    kept = first.stat().st_mtime_ns
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", **changes, output_dir=str(interrupted)))
    assert tables(interrupted) == before
    assert first.stat().st_mtime_ns == kept
    assert len(list((interrupted / "completions").iterdir())) == 4


def test_a_write_that_fails_leaves_no_table(grpo_recipe, tmp_path, monkeypatch):
    """A full disk, halfway."""

    def write(table, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("r1llama.training.completions.parquet.write_table", write)
    with pytest.raises(RunStopped, match=r"writing completions_00001\.parquet: no space for it"):
        grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", log_completions_steps=1))
    assert not list((tmp_path / "out" / "completions").glob("*.parquet"))


def test_one_writer_of_tables_is_enough(grpo_recipe, tmp_path):
    with pytest.raises(RecipeError, match="`log_completions` and `log_completions_steps` write the same tables"):
        grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", log_completions=True, log_completions_steps=1))
