"""Rounds of self-improvement: what is learnt, when it stops, and that an interruption changes nothing."""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1llama.training import improve, sampling, stage
from r1llama.training.recipe import RecipeError

from .conftest import SFT_KEYS, argv, assert_same_weights, json_lines, write_jsonl

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [{"prompt": f"{a}+{b}=", "solution": str(a + b)} for a in range(5) for b in range(4)]
    write_jsonl(folder / "train.jsonl", rows[:12])
    write_jsonl(folder / "test.jsonl", rows[12:])
    return folder


@pytest.fixture(scope="module")
def recipe(ending_dir, data):
    return {
        "model_name_or_path": str(ending_dir),
        "dataset_name": str(data),
        "reward_funcs": ["tests.training.rewards.letter_share"],
        "keep_threshold": 0.2,
        "rounds": 2,
        "patience": 2,
        "sampling": {"num_generations": 4, "max_completion_length": 12, "batch_size": 20},
        "sft": {"max_steps": 2, "save_steps": 1, **SFT_KEYS},
    }


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    improve.main(argv(recipe, folder / "r.yaml", output_dir=str(folder / "out")))
    return folder / "out"


def assert_same_run(one, other):
    for pattern in ("round-*/*.jsonl", "round-*/kept.json", "round-*/evaluation.json", "improve.json"):
        names = sorted(str(path.relative_to(one)) for path in one.glob(pattern))
        assert names == sorted(str(path.relative_to(other)) for path in other.glob(pattern))
        for name in names:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for folder in ("round-1/model", "round-2/model", "."):
        assert_same_weights(one / folder, other / folder)


def test_a_run_leaves_its_rounds_and_the_best_model(whole, ending_dir):
    found = json.loads((whole / "improve.json").read_text())
    assert [result["round"] for result in found["rounds"]] == [0, 1, 2]
    assert found["rounds"][1]["sampled"] == len(json_lines(whole / "round-1" / "samples.jsonl")) == 48
    kept = json_lines(whole / "round-1" / "kept.jsonl")
    assert 0 < found["rounds"][1]["kept"] == len(kept) <= found["rounds"][1]["right"]
    assert found["rounds"][1]["completions"] == len(json_lines(whole / "round-1" / "evaluation.jsonl")) == 8
    best = whole / f"round-{found['best_round']}" / "model" if found["best_round"] else ending_dir
    assert_same_weights(whole, best)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(whole), AutoTokenizer.from_pretrained(whole)
    model.generate(**tokenizer("1+1=", return_tensors="pt"), max_new_tokens=2)
    card = (whole / "README.md").read_text()
    assert "| 2 | " in card
    assert f"weights of round {found['best_round']}" in card
    assert not list(whole.glob("round-*/model/checkpoint-*"))
    for number, name in ((1, str(ending_dir)), (2, str(ending_dir))):  # each fine-tuning starts over
        assert yaml.safe_load((whole / f"round-{number}" / "sft.yaml").read_text())["model_name_or_path"] == name


class Killed(BaseException):
    pass


def test_killed_at_every_action_of_a_round_it_ends_the_same(recipe, whole, tmp_path, monkeypatch):
    """Each start gets two actions further than the one before; an action is a batch, a file, an optimizer step or the
    save. The first one finds torn pieces."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    second = out / "round-2"
    for path in (*second.glob("*.json"), second / "kept.jsonl", second / "evaluation.jsonl", out / "improve.json"):
        path.unlink()
    samples = (second / "samples.jsonl").read_bytes()
    (second / "samples.jsonl").write_bytes(samples[: len(samples) // 4])
    (second / "kept.jsonl.part").write_text('{"prompt": ')
    (second / "model" / "model.safetensors").write_bytes(b"half")

    allowed = kills = 0

    def deadly(module, name, counts=lambda *args: True):
        action = getattr(module, name)

        def act(*args, **kwargs):
            nonlocal allowed
            if counts(*args):
                if not allowed:
                    raise Killed
                allowed -= 1
            return action(*args, **kwargs)

        monkeypatch.setattr(module, name, act)

    deadly(sampling, "complete")
    deadly(improve, "write_lines")
    deadly(improve, "replace_text", lambda path, text: path.suffix == ".json")
    deadly(transformers.Trainer, "training_step")
    deadly(stage, "save")
    words = argv(recipe, tmp_path / "r.yaml", output_dir=str(out))
    while kills < 20:
        allowed = 2
        try:
            improve.main(words)
            break
        except Killed:
            kills += 1
    assert 4 <= kills < 20
    assert_same_run(whole, out)


def test_a_finished_run_does_nothing_until_asked_for_more(recipe, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    with monkeypatch.context() as patch:
        patch.setattr(improve, "load_model", lambda *args: pytest.fail("a model was loaded"))
        words = argv(recipe, tmp_path / "r.yaml", output_dir=str(out))
        found = improve.main(words)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    with pytest.raises(RecipeError, match=r"was begun with `keep_threshold: 0\.2`, not 0\.3"):
        improve.main([*words, "--keep_threshold", "0.3"])
    more = improve.main([*words, "--rounds", "3", "--patience", "3"])
    assert more["rounds"][:3] == found["rounds"]
    assert len(more["rounds"]) == 4


def test_a_model_that_learns_nothing_stops_and_stays_as_it_was(recipe, ending_dir, tmp_path):
    still = recipe["sft"] | {"learning_rate": 1e-30, "save_strategy": "no"}
    found = improve.main(
        argv(recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / "out"), sft=still, patience=1, rounds=5)
    )
    assert found["best_round"] == 0
    assert found["stopped"] == "round 1 did not improve"
    assert len(found["rounds"]) == 2
    assert_same_weights(tmp_path / "out", ending_dir)


def test_nothing_right_is_an_error_that_says_why(recipe, tmp_path):
    """Random bytes hold no answer."""
    with pytest.raises(RecipeError) as refused:
        improve.main(
            argv(
                recipe | {"keep_threshold": 1.0, "reward_funcs": ["accuracy", "format"]},
                tmp_path / "r.yaml",
                output_dir=str(tmp_path / "out"),
            )
        )
    assert "round 1 kept none of 48 completions" in str(refused.value)
    assert "accuracy_reward 0, format_reward 0" in str(refused.value)
    assert "<think>" in str(refused.value)


def test_grpo_rounds_on_chat_prompts_go_on_from_each_other(recipe, tmp_path):
    rows = [{"prompt": [{"role": "user", "content": f"{n}+1="}], "solution": str(n + 1)} for n in range(12)]
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", rows[:8])
    write_jsonl(tmp_path / "data" / "test.jsonl", rows[8:])
    changes = {
        "dataset_name": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"),
        "method": "grpo",
        "sft": {},
        "grpo": {
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "num_generations": 2,
            "max_completion_length": 8,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "bf16": False,
            "save_strategy": "no",
            "disable_tqdm": True,
        },
    }
    found = improve.main(argv(recipe, tmp_path / "r.yaml", **changes))
    assert len(found["rounds"]) == 3
    second = yaml.safe_load((tmp_path / "out" / "round-2" / "grpo.yaml").read_text())
    assert second["model_name_or_path"] == str(tmp_path / "out" / "round-1" / "model")
    assert second["dataset_name"] == str(tmp_path / "data")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"method": "ppo"}, ["`method: ppo`", "expert_iteration or grpo"]),
        ({"rounds": 0}, ["`rounds: 0`"]),
        ({"min_improvement": -1}, ["`min_improvement: -1.0`"]),
        ({"sampling": {"num_generation": 4}}, ["`sampling`", "Did you mean `num_generations`?"]),
        ({"sampling": {"max_completion_length": 1000}}, ["`max_completion_length: 1000`", "context of 128"]),
        ({"sft": {"lerning_rate": 1}}, ["round-1/sft.yaml", "Did you mean `learning_rate`?"]),
        ({"sft": {"learning_rate": -1}}, ["`learning_rate: -1.0`"]),
        ({"sft": {"output_dir": "x"}}, ["`sft.output_dir`", "each round"]),
        ({"grpo": {"beta": 0}}, ["`grpo` belongs to another method"]),
        ({"restart": False, "sft": {"use_peft": True}}, ["adapters on adapters"]),
        ({"reward_funcs": ["acuracy"]}, ["`reward_funcs`", "accuracy"]),
        ({"reward_funcs": ["tests.training.rewards.needs_level"]}, ["column `level`"]),
        ({"dataset_test_split": "train"}, ["12 prompts are in both"]),
        ({"dataset_test_split": "validation"}, ["`dataset_name`", "validation"]),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_loads(changes, names, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(improve, "load_model", lambda *args: pytest.fail("a model was loaded"))
    with pytest.raises(RecipeError) as refused:
        improve.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / "out"), **changes))
    assert all(name in str(refused.value) for name in names), refused.value


def test_the_standard_error_is_that_of_paired_differences():
    before, after = [True, False, False, True], [True, True, True, False]
    differences = [0, 1, 1, -1]
    mean, error = improve.paired_gain(before, after)
    assert mean == statistics.mean(differences)
    assert error == pytest.approx(statistics.stdev(differences) / 4**0.5)
    assert improve.paired_gain(before, before) == (0, 0)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(recipe, whole, tmp_path):
    words = argv(recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / "out"))
    draw, kills = random.Random(0), 0
    while True:
        run = subprocess.Popen(
            [sys.executable, "-m", "r1llama.training.improve", *words],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        wait = time.monotonic() + draw.uniform(8, 25)
        while run.poll() is None and time.monotonic() < wait:
            time.sleep(0.05)
        if run.poll() is not None:
            break
        run.kill()
        run.wait()
        kills += 1
    assert run.returncode == 0
    assert kills
    assert_same_run(whole, tmp_path / "out")
