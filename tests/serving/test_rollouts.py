"""GRPO with a colocated engine: it samples from exactly the policy that is trained, fp32."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from r1llama.training import grpo, stage, vllm_rollouts
from r1llama.training.recipe import RecipeError
from tests.training.conftest import argv, assert_same_weights, byte_tokenizer, json_lines, tables, weights, write_jsonl

from .models import EXPERTS, LATENT, MODELS, tiny_model

pytest.importorskip("vllm")

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = MODELS["everything"] | {"tie_word_embeddings": True}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Of three steps; its model is grouped-query."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    save(tiny, tmp_path / "model")
    rows = [{"prompt": "x" * a + f"{a}+{b}=", "solution": str(a + b)} for a in range(4) for b in range(4)]
    return {
        "model_name_or_path": str(tmp_path / "model"),
        "dataset_name": str(write_jsonl(tmp_path / "problems.jsonl", rows)),
        "output_dir": str(tmp_path / "out"),
        "reward_funcs": ["tests.training.rewards.letter_share"],
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "log_completions_steps": 1,
        "use_vllm": True,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }


def tiny(tokenizer, **switches):
    return tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **switches)


def llama(tokenizer):
    torch.manual_seed(0)
    config = tiny(tokenizer).config.to_diff_dict() | {"tie_word_embeddings": True}
    config = {key: value for key, value in config.items() if hasattr(LlamaConfig(), key)}
    return LlamaForCausalLM(LlamaConfig(**config | {"model_type": "llama", "architectures": None}))


def save(make, folder, **switches):
    tokenizer = byte_tokenizer()
    model = make(tokenizer, **switches)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def differences(folder):
    """The largest between the engine's log-probability of a token and the trainer's, at each step."""
    return [
        log["sampling/sampling_logp_difference/max"] for log in json_lines(folder / "metrics.jsonl") if "loss" in log
    ]


@pytest.mark.parametrize("case", ["llama", "everything", "wide-latent-experts", "without weights", "adapters"])
def test_the_engine_samples_from_the_trained_policy(recipe, tmp_path, case):
    changes = {}
    if case == "llama":
        save(llama, tmp_path / "model")
    elif case == "adapters":
        save(tiny, tmp_path / "model", **EXPERTS | LATENT)
        changes = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0}
    else:
        save(tiny, tmp_path / "model", **MODELS.get(case, ALL))
    before = weights(tmp_path / "model")
    if case == "without weights":
        (tmp_path / "model" / "model.safetensors").unlink()
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        del config["architectures"]
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    grpo.main(argv(recipe, tmp_path / "r.yaml", **changes))
    logs = differences(tmp_path / "out")
    assert len(logs) == 3
    assert max(logs) < 1e-4
    if case == "adapters":
        after = weights(tmp_path / "out", "adapter_model")
        assert all(tensor.any() for name, tensor in after.items() if "lora_B" in name)
    else:
        after = weights(tmp_path / "out")
        moved = [(after[name] - before[name]).abs().max() for name in before if "correction_bias" not in name]
        assert min(moved) > 1e-3  # an engine with the first weights would be far off
    lengths = {row["tokens"] for row in tables(tmp_path / "out")}
    assert max(lengths) == 12


def test_resumed_equals_uninterrupted_and_seeds_differ(recipe, tmp_path):
    save(tiny, tmp_path / "model", **ALL)
    recipe |= {"max_steps": 4, "save_steps": 2, "seed": 3}
    grpo.main(argv(recipe, tmp_path / "r.yaml"))
    straight = tables(tmp_path / "out")
    assert len({row["completion"] for row in straight}) > 24  # of 32: other noise at each step

    shutil.copytree(tmp_path / "out" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    grpo.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / "resumed")))
    resumed = tables(tmp_path / "resumed")
    assert [row["completion"] for row in resumed] == [row["completion"] for row in straight if row["step"] > 2]
    assert max(differences(tmp_path / "resumed")) < 1e-4
    assert_same_weights(tmp_path / "resumed", tmp_path / "out")

    grpo.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / "other"), seed=4, max_steps=1))
    other = {row["completion"] for row in tables(tmp_path / "other")}
    assert not other & {row["completion"] for row in straight}


def test_a_sync_leaves_the_weights_under_adapters_as_they_are(recipe, tmp_path, monkeypatch):
    save(tiny, tmp_path / "model", **EXPERTS)
    seen = []

    class Watched(vllm_rollouts.VLLMRollouts):
        def sync_weights(self):
            before = {name: param.clone() for name, param in self.model.named_parameters()}
            super().sync_weights()
            seen.append(all(torch.equal(param, before[name]) for name, param in self.model.named_parameters()))

    monkeypatch.setattr(vllm_rollouts, "VLLMRollouts", Watched)
    adapters = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "dtype": "bfloat16", "learning_rate": 1e-3}
    grpo.main(argv(recipe, tmp_path / "r.yaml", **adapters))
    assert seen == [True] * 3


def test_a_cache_too_small_is_one_line_that_names_the_keys(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_rollouts, "CPU_CACHE", 4096)
    with pytest.raises(RecipeError, match=r"`use_vllm: true`.*memory.*`?vllm_") as caught:
        grpo.main(argv(recipe, tmp_path / "r.yaml"))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert_experts_can_follow(recipe, tmp_path)


def test_a_run_that_dies_takes_its_engine_along(recipe, tmp_path):
    rewards = ["tests.training.rewards.broken"]
    with pytest.raises(ZeroDivisionError) as caught:  # it holds the trainer, as a notebook does
        grpo.main(argv(recipe, tmp_path / "r.yaml", reward_funcs=rewards, output_dir=str(tmp_path / "dead")))
    assert caught.value
    assert_experts_can_follow(recipe, tmp_path)


def assert_experts_can_follow(recipe, tmp_path):
    """vLLM has process groups for experts, which an engine without any does not make."""
    save(tiny, tmp_path / "model", **EXPERTS)
    grpo.main(argv(recipe, tmp_path / "r.yaml", max_steps=1))
    assert max(differences(tmp_path / "out")) < 1e-4


def test_a_model_that_vllm_does_not_take_is_one_line(recipe, tmp_path):
    save(tiny, tmp_path / "model", head_dim=20)
    with pytest.raises(RecipeError, match=r"engine does not start: a head of 20 channels \(head_dim\).*\]$"):
        grpo.main(argv(recipe, tmp_path / "r.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_have_an_engine_each(recipe, tmp_path, kind):
    launch = yaml.safe_load((RECIPES / "accelerate" / f"{kind}.yaml").read_text())
    launch |= {"num_processes": 2, "use_cpu": True, "mixed_precision": "no"}
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(launch))
    save(tiny, tmp_path / "model", **ALL)
    command = ["-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "launch.yaml")]
    command += ["-m", "r1llama.training.grpo", *argv(recipe, tmp_path / "r.yaml")]
    subprocess.run([sys.executable, *command], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert max(differences(tmp_path / "out")) < 1e-4
    written = [row["completion"] for row in tables(tmp_path / "out")]
    assert len(written) == 48
    assert len(set(written)) > 36  # other noise in each process


@pytest.mark.parametrize(
    ("length", "said"),
    [(18, "would cut completions short: the longest prompt has 7 tokens.*makes 19"), (300, "context of 256")],
)
def test_a_context_that_does_not_fit(recipe, tmp_path, monkeypatch, length, said):
    monkeypatch.setattr(stage, "load_model", lambda *args: pytest.fail("the model was loaded"))
    with pytest.raises(RecipeError, match=f"`vllm_max_model_length: {length}`.*{said}"):
        grpo.main(argv(recipe, tmp_path / "r.yaml", vllm_max_model_length=length))
