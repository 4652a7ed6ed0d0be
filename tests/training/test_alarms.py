"""Alarms on recorded runs (trajectories/README.md), on a run that goes wrong here, and on healthy ones."""

import random
from pathlib import Path

import pytest

from r1llama.training import grpo
from r1llama.training.alarms import History, find_alarms

from .conftest import argv, json_lines

FOLDER = Path(__file__).parent / "trajectories"


def raised(name, groups=8):
    """Alarm -> (step that raised it first, its sentence)."""
    logs, found = json_lines(FOLDER / f"{name}.jsonl"), {}
    for end in range(1, len(logs) + 1):
        for alarm, sentence in find_alarms(History(logs[:end], groups, "accuracy_reward")).items():
            found.setdefault(alarm, (end, sentence))
    return found


def test_a_run_that_learns_raises_none():
    """Its completions double, its entropy falls to a thirtieth, and most groups are flat in the end."""
    logs = json_lines(FOLDER / "solved.jsonl")
    assert logs[-1]["completions/mean_length"] > 1.9 * logs[0]["completions/mean_length"]
    assert logs[-1]["entropy"] < logs[0]["entropy"] / 20
    assert max(log["flat_groups"] for log in logs) == 1
    assert set(raised("solved", groups=16)) <= {"stuck:format_reward"}  # at 1: information


def test_a_broken_model_is_told_at_once():
    found = raised("broken")
    assert found["collapse"] == (6, "format_reward fell from 0.984 (step 1) to 0 (steps 2-6)")
    assert found["truncation"][1].startswith("79% of the completions reach `max_completion_length`")
    assert found["stuck:accuracy_reward"] == (6, "accuracy_reward has not varied for 5 steps")
    assert set(found) <= {"collapse", "truncation", "stuck:accuracy_reward", "stuck:format_reward"}


def test_a_policy_far_from_its_reference_is_told():
    found = raised("kl")
    assert found["kl"][0] == 6
    assert found["kl"][1].startswith("the KL to the reference rose from 0 (step 1) to 4.91 (steps 2-6) nats a token")
    assert {"collapse", "truncation", "entropy", "flat"} <= set(found)


def test_certainty_without_right_answers_is_told():
    found = raised("format_only")
    assert found["entropy"][1].startswith("the entropy fell from 0.145 (steps 1-5) to 0.0141 (steps 20-24) nats")
    assert "100% of the groups have equal rewards at accuracy_reward 0.1:" in found["entropy"][1]
    assert found["flat"][0] <= found["entropy"][0]


def test_length_that_pays_instead_of_answers_is_told():
    found = raised("longer")
    assert "and accuracy_reward went from 0.77 to 0.075, " in found["length"][1]
    assert "longer went from 0.59 to 0.9:" in found["length"][1]
    assert found["length"][0] <= 14


def test_no_reward_at_all_is_no_alarm_of_the_others():
    """A base model that never answers yet: stuck is told, but not of the punishment that nothing earns."""
    logs = [
        {"step": i, "reward": 0.0, "rewards/a/mean": 0.0, "rewards/a/std": 0.0, "entropy": 2.0, "flat_groups": 1.0}
        | {"rewards/soft_overlong_punishment_reward/mean": 0.0, "rewards/soft_overlong_punishment_reward/std": 0.0}
        | {"completions/mean_length": 40.0, "completions/clipped_ratio": 0.1}
        for i in range(1, 30)
    ]
    assert set(find_alarms(History(logs, 4, "a"))) == {"stuck:a"}


def test_a_run_that_goes_wrong_says_so_once_and_not_again_when_resumed(grpo_recipe, tmp_path, caplog):
    """Random weights never end: truncation; a wild learning rate leaves the reference far behind: kl."""
    changes = {"beta": 0.01, "learning_rate": 0.3, "lr_scheduler_type": "constant", "save_steps": 8, "max_steps": 8}
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", **changes))
    said = [r.getMessage() for r in caplog.records if r.name == "r1llama" and r.levelname == "WARNING"]
    for kind in ("truncation", "kl"):
        assert len([words for words in said if words.startswith(f"{kind}: ")]) == 1
    caplog.clear()
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", **changes | {"max_steps": 9}))
    assert not [r for r in caplog.records if r.getMessage().startswith(("truncation: ", "kl: "))]


@pytest.mark.parametrize("groups", [1, 8])
def test_noise_is_no_alarm(groups):
    """Mean rewards as noisy as so few groups make them, around a constant, for 400 logs."""
    draw = random.Random(0)
    spread = 0.5
    logs = []
    for step in range(1, 401):
        reward = min(max(draw.gauss(0.5, spread / groups**0.5), 0), 1)
        logs.append(
            {"step": step, "reward": reward, "rewards/a/mean": reward, "rewards/a/std": spread, "flat_groups": 0.3}
            | {"completions/mean_length": draw.gauss(100, 10), "completions/clipped_ratio": 0.2, "entropy": 0.5}
        )
    found = [find_alarms(History(logs[:end], groups, "a")) for end in range(5, 401, 5)]
    assert not any(found)
