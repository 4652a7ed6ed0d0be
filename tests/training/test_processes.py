"""The same stages on two CPU processes, launched as a user launches them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from r1llama.training import distill, sft
from r1llama.training.checkpoint import newest_complete

from .conftest import argv, assert_balanced, assert_same_weights, json_lines, weights, write_jsonl

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "accelerate"
pytestmark = pytest.mark.slow


def launch(config, stage, words):
    """`accelerate launch` on a free port; what it printed, if it ended well."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(config),
    ]
    ended = subprocess.run(
        [*command, "--main_process_port", "0", "-m", f"r1llama.training.{stage}", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stderr


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("config", ["ddp_cpu2", "zero3_cpu2"])
def test_two_processes_train_and_resume_exactly(config, stage, request, tmp_path):
    if config.startswith("zero3"):
        pytest.importorskip("deepspeed")
    recipe = request.getfixturevalue(f"{stage}_recipe")
    changes = {
        "save_steps": 2,
        "log_completions_steps": 2,
        "bf16": config.startswith("zero3"),
        "per_device_train_batch_size": 4,
    }
    words = argv(recipe, tmp_path / "r.yaml", **changes)
    launch(CONFIGS / f"{config}.yaml", stage, words)
    out, resumed = tmp_path / "out", tmp_path / "resumed"
    AutoModelForCausalLM.from_pretrained(out)

    resumed.mkdir()
    for name in ("checkpoint-2", "checkpoint-4"):
        shutil.copytree(out / name, resumed / name)
    (resumed / "checkpoint-4" / "scheduler.pt").unlink()
    said = launch(CONFIGS / f"{config}.yaml", stage, [*words, "--output_dir", str(resumed)])
    assert said.count("passed over checkpoint-4: scheduler.pt is missing") == 1  # one process speaks
    assert_same_weights(out, resumed)


def test_one_process_continues_what_two_began(sft_recipe, tmp_path, caplog):
    """The same batches, hence the same weights, up to the order of summation."""
    words = argv(sft_recipe, tmp_path / "r.yaml", save_steps=2, per_device_train_batch_size=4)
    launch(CONFIGS / "ddp_cpu2.yaml", "sft", words)
    shutil.copytree(tmp_path / "out" / "checkpoint-2", tmp_path / "alone" / "checkpoint-2")
    sft.main([*words, "--output_dir", str(tmp_path / "alone"), "--per_device_train_batch_size", "8"])
    assert "saved by 2 processes, and 1 continue" in caplog.text
    assert_same_weights(tmp_path / "out", tmp_path / "alone", rtol=1e-3, atol=1e-5)


def test_a_signal_to_one_process_stops_both_with_a_checkpoint(sft_recipe, tmp_path):
    words = argv(sft_recipe, tmp_path / "r.yaml", max_steps=100000, save_steps=100000, num_train_epochs=100000)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp_cpu2.yaml")]
    run = subprocess.Popen(
        [*command, "--main_process_port", "0", "-m", "r1llama.training.sft", *words],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    metrics = tmp_path / "out" / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert run.poll() is None
        time.sleep(0.1)
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGTERM)
    said = run.communicate()[1]
    assert said.count("r1llama: stopped by SIGTERM after step") == 1
    folder, passed_over = newest_complete(tmp_path / "out")
    assert folder is not None
    assert not passed_over


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_experts_and_linear_attention_under_zero3(stage, request, expert_dir, tmp_path):
    pytest.importorskip("deepspeed")
    recipe = request.getfixturevalue(f"{stage}_recipe")
    words = argv(recipe, tmp_path / "r.yaml", model_name_or_path=str(expert_dir), bf16=True)
    launch(CONFIGS / "zero3_cpu2.yaml", stage, words)
    assert_balanced(tmp_path / "out")


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("config", ["ddp_cpu2", "zero3_cpu2"])
def test_multi_token_prediction_and_muon(config, stage, request, expert_dir, tmp_path):
    """Muon on whole matrices alone: not under ZeRO-3."""
    is_sharded = config.startswith("zero3")
    if is_sharded:
        pytest.importorskip("deepspeed")
    shutil.copytree(expert_dir, tmp_path / "start")
    AutoConfig.from_pretrained(expert_dir, num_mtp_layers=2).save_pretrained(tmp_path / "start")
    recipe = request.getfixturevalue(f"{stage}_recipe")
    recipe |= {"model_name_or_path": str(tmp_path / "start"), "bf16": is_sharded, "muon": not is_sharded}
    launch(CONFIGS / f"{config}.yaml", stage, argv(recipe, tmp_path / "r.yaml"))
    gains = {name: tensor for name, tensor in weights(tmp_path / "out").items() if name.endswith("enorm.weight")}
    assert len(gains) == 2
    assert all((gain != 1).any() == (stage == "sft") for gain in gains.values())


@pytest.mark.parametrize("config", ["fsdp2", "zero2"])
def test_gpu_configs_on_two_cpu_processes(config, grpo_recipe, tmp_path):
    """What the launch config says beside the machine works; how it runs on GPUs is for a machine that has them."""
    changed = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    changed |= {"use_cpu": True, "num_processes": 2, "mixed_precision": "no"}
    (tmp_path / "cpu.yaml").write_text(yaml.safe_dump(changed))
    launch(tmp_path / "cpu.yaml", "grpo", argv(grpo_recipe, tmp_path / "r.yaml", max_steps=2))
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_groups_are_counted_over_all_processes(grpo_recipe, tmp_path):
    """Six completions on each of two processes are three groups of four."""
    words = argv(grpo_recipe, tmp_path / "r.yaml", per_device_train_batch_size=6, max_steps=1)
    launch(CONFIGS / "ddp_cpu2.yaml", "grpo", words)


def test_a_refusal_is_said_once(grpo_recipe, tmp_path):
    words = argv(grpo_recipe, tmp_path / "r.yaml", num_generations=3)
    with pytest.raises(AssertionError) as failed:
        launch(CONFIGS / "ddp_cpu2.yaml", "grpo", words)
    assert str(failed.value).count("r1llama: a batch of 16 completions") == 1


def test_weighted_tags_are_weighed_over_all_processes(sft_recipe, tmp_path):
    """Rows of different lengths, with and without tags: two processes make the step of one with the whole batch."""
    answers = ["<think>1+1</think><answer>2</answer>", "2", "<think>", "no tag, but many more words", "</answer>", "1"]
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"{i}=", "completion": a} for i, a in enumerate(answers)])
    recipe = sft_recipe | {"dataset_name": str(rows), "tag_weights": {"<think>": 10.0, "</answer>": 3.0}}
    recipe |= {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3, "train_sampling_strategy": "sequential"}
    alone, together = tmp_path / "alone", tmp_path / "out"
    distill.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(alone), per_device_train_batch_size=6))
    words = argv(recipe, tmp_path / "r.yaml", per_device_train_batch_size=1, gradient_accumulation_steps=3)
    launch(CONFIGS / "ddp_cpu2.yaml", "distill", words)
    assert_same_weights(alone, together, rtol=1e-4, atol=1e-6)
    one, two = (json_lines(folder / "metrics.jsonl")[0] for folder in (alone, together))
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert one["tag_emission"] == pytest.approx(two["tag_emission"])
