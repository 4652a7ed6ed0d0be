"""The quickstart without its training: data, model and recipes. The whole run is `make quickstart`."""

import importlib.util
import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from r1llama.tasks.arithmetic import short_completion, worked_completion

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "examples" / "quickstart.py")
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    folder = tmp_path_factory.mktemp("quickstart")
    return quickstart, folder, quickstart.prepare(folder, seed=0)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_no_stage_sees_a_test_problem(prepared):
    _, folder, test = prepared
    demonstrations, problems = read(folder / "demonstrations.jsonl"), read(folder / "problems.jsonl")
    assert read(folder / "test.jsonl") == test
    prompts = [row["prompt"] for row in demonstrations + problems + test]
    assert len(set(prompts)) == len(prompts)  # nor does GRPO get a demonstrated one


def test_demonstrations_are_worked_first_and_mostly_short_at_the_end(prepared):
    quickstart, folder, _ = prepared
    rows = read(folder / "demonstrations.jsonl")
    worked = [row["completion"] == worked_completion(row["prompt"]) for row in rows]
    short = [row["completion"] == short_completion(row["prompt"]) for row in rows]
    assert all(w != s for w, s in zip(worked, short, strict=True))
    assert all(worked[: quickstart.WORKED_DEMONSTRATIONS])
    mixed = worked[quickstart.WORKED_DEMONSTRATIONS :]
    assert abs(sum(mixed) / len(mixed) - quickstart.WORKED_SHARE) < 0.05


def test_the_longest_answer_fits(prepared):
    quickstart, folder, _ = prepared
    tokenizer = AutoTokenizer.from_pretrained(folder / "start")
    rows = read(folder / "demonstrations.jsonl")
    longest = max(len(tokenizer(row["completion"])["input_ids"]) for row in rows)
    assert longest < quickstart.MAX_NEW_TOKENS  # the end of text takes one more


def test_the_model_is_small_and_has_every_kind_of_layer(prepared):
    _, folder, _ = prepared
    config = AutoConfig.from_pretrained(folder / "start")
    assert 0.5e6 < AutoModelForCausalLM.from_config(config).num_parameters() < 1.5e6
    assert config.kv_lora_rank
    assert config.num_experts > config.num_experts_per_tok
    assert config.layer_types.count("linear_attention") == 1


def test_the_curve_is_drawn(prepared, tmp_path):
    quickstart, _, _ = prepared
    logs = [{"step": s, "rewards/accuracy_reward/mean": s / 10, "completions/mean_length": 9 + s} for s in (5, 10)]
    quickstart.write_jsonl(tmp_path / "metrics.jsonl", [*logs, {"step": 10, "train_runtime": 1.0}])
    quickstart.plot(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
