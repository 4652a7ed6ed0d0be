"""Groups of equal rewards are replaced, as often as the recipe allows. Their losses: test_algorithms.py."""

import shutil

import pytest
import yaml

from r1llama.training import grpo
from r1llama.training.recipe import RecipeError

from .conftest import argv, assert_same_weights, json_lines, tables
from .test_processes import CONFIGS, launch
from .test_shared_prompts import latent_dir, recipe  # noqa: F401

CHANGES = {"max_resamples": 8, "reward_funcs": ["tests.training.rewards.half_flat"], "log_completions_steps": 1}


def logs_of(folder):
    return [log for log in json_lines(folder / "metrics.jsonl") if "loss" in log]


def assert_all_groups_compare(folder, size=4):
    """No group of a table is flat, and each has one prompt and the advantages of its own rewards."""
    rows = tables(folder)
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        assert len({row["prompt"] for row in group}) == 1
        assert len(group[0]["prompt"]) % 2
        order = sorted(group, key=lambda row: row["half_flat"])
        assert order[0]["advantage"] < 0 < order[-1]["advantage"]
        assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-5)


def test_flat_groups_are_replaced_and_a_resumed_run_replaces_them_alike(recipe, tmp_path):  # noqa: F811
    changes = CHANGES | {"save_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    grpo.main(argv(recipe, tmp_path / "r.yaml", **changes))
    assert_all_groups_compare(tmp_path / "out")
    assert all(log["dynamic_sampling/flat"] == 0 for log in logs_of(tmp_path / "out"))
    assert sum(log["dynamic_sampling/resamples"] for log in logs_of(tmp_path / "out")) >= 2

    interrupted = tmp_path / "interrupted"
    shutil.copytree(tmp_path / "out" / "checkpoint-1", interrupted / "checkpoint-1")
    grpo.main(argv(recipe, tmp_path / "r.yaml", **changes, output_dir=str(interrupted)))
    assert_same_weights(tmp_path / "out", interrupted)
    assert tables(interrupted) == [row for row in tables(tmp_path / "out") if row["step"] == 2]


def test_it_gives_up_after_so_many_generations(recipe, tmp_path):  # noqa: F811
    changes = {"max_resamples": 2, "reward_funcs": ["tests.training.rewards.flat"], "max_steps": 1}
    grpo.main(argv(recipe, tmp_path / "r.yaml", **changes))
    (log,) = logs_of(tmp_path / "out")
    assert (log["dynamic_sampling/resamples"], log["dynamic_sampling/flat"]) == (2, 1)
    assert log["loss"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_rewards": "batch"}, r"`scale_rewards: batch` compares the groups of one"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, r"change `multi_objective_aggregation`"),
        ({"max_resamples": -1}, r"`max_resamples: -1` must not be negative"),
    ],
)
def test_what_cannot_be_mixed_is_refused(changes, message, grpo_recipe, tmp_path):
    with pytest.raises(RecipeError, match=message):
        grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", **{"max_resamples": 1} | changes))


def test_groups_over_several_processes_are_refused(grpo_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"replaces whole groups, but each process generates 2 completions"):
        grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", max_resamples=1, per_device_train_batch_size=2))


@pytest.mark.slow
def test_on_two_processes(recipe, tmp_path):  # noqa: F811
    changed = yaml.safe_load((CONFIGS / "ddp_cpu2.yaml").read_text()) | {"mixed_precision": "no"}
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(changed))
    launch(tmp_path / "launch.yaml", "grpo", argv(recipe, tmp_path / "r.yaml", **CHANGES))
    assert_all_groups_compare(tmp_path / "out")
    assert len(tables(tmp_path / "out")) == 2 * 2 * 8
