"""Format first, accuracy later: the weights of rewards follow the steps."""

import shutil

import pytest

from r1llama.training import grpo
from r1llama.training.recipe import RecipeError

from .conftest import argv, assert_same_weights, json_lines

REWARDS = ["tests.training.rewards.letter_share", {"name": "soft_overlong_punishment", "max_completion_len": 12}]
REWARDS[1]["soft_punish_cache"] = 11  # varies with the length
LETTERS = REWARDS[0]


def test_weights_follow_their_points_also_in_a_resumed_run(grpo_recipe, tmp_path):
    """From 1 to 0.25 over three steps, then constant; the other reward keeps its weight."""
    changes = {
        "reward_funcs": REWARDS,
        "reward_weights": [9.0, 0.5],
        "reward_schedules": {LETTERS: [[0, 1.0], [3, 0.25]]},
        "save_steps": 2,
        "max_steps": 5,
    }
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", **changes))
    logs = [log for log in json_lines(tmp_path / "out" / "metrics.jsonl") if "loss" in log]
    for log, weight in zip(logs, [1.0, 0.75, 0.5, 0.25, 0.25], strict=True):
        means = [log[f"rewards/{name}/mean"] for name in ("letter_share", "soft_overlong_punishment_reward")]
        assert log["reward"] == pytest.approx(weight * means[0] + 0.5 * means[1], abs=1e-6)
        assert means[0] > 0  # logged before the weight

    interrupted = tmp_path / "interrupted"
    shutil.copytree(tmp_path / "out" / "checkpoint-2", interrupted / "checkpoint-2")
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", **changes, output_dir=str(interrupted)))
    assert_same_weights(tmp_path / "out", interrupted)


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ({"accuracy": [[0, 1]]}, r"`accuracy` is none of the rewards tests.training.rewards.letter_share"),
        ({LETTERS: [0, 1]}, r"wants \[\[step, weight\], ...\], not \[0, 1\]"),
        ({LETTERS: [[5, 1], [5, 0]]}, r"the steps of `.*letter_share` must rise"),
    ],
)
def test_what_is_no_schedule_is_refused(schedules, message, grpo_recipe, tmp_path):
    with pytest.raises(RecipeError, match=message):
        grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", reward_schedules=schedules))
