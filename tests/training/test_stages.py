"""What a stage leaves behind, and that the same recipe means the same run."""

import json
import shutil
import socket
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from r1llama.training import grpo, sft
from r1llama.training.recipe import RecipeError

from .conftest import argv, assert_balanced, assert_same_weights, json_lines, only_vllm, tables, weights, write_jsonl

STAGES = {"sft": sft, "grpo": grpo}


@pytest.fixture(params=STAGES)
def stage(request):
    """`(main, recipe)` of each stage."""
    return STAGES[request.param].main, request.getfixturevalue(f"{request.param}_recipe")


def test_a_stage_leaves_a_model_that_generates_and_its_records(stage, tmp_path, model_dir):
    main, recipe = stage
    metrics = main(argv(recipe, tmp_path / "r.yaml", log_completions_steps=2))
    out = tmp_path / "out"
    assert json.loads((out / "all_results.json").read_text())["train_loss"] == metrics["train_loss"]

    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.use_cache
    assert model.generation_config.use_cache
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    model.generate(**tokenizer("1+1=", return_tensors="pt"), max_new_tokens=2)

    logs = [log for log in json_lines(out / "metrics.jsonl") if "loss" in log]
    assert [log["step"] for log in logs] == [1, 2, 3, 4]
    samples = json_lines(out / "completions" / "samples.jsonl") if main is sft.main else tables(out)
    assert {sample["step"] for sample in samples} == {2, 4}
    assert "r1llama" in (out / "README.md").read_text()
    before, after = weights(model_dir), weights(out)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_local_paths_need_no_network(stage, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kwargs: asked.append(host))
    main, recipe = stage
    main(argv(recipe, tmp_path / "r.yaml", max_steps=1))
    time.sleep(0.2)  # TRL reports from a thread
    assert not asked


def test_a_stuck_reward_is_explained(grpo_recipe, tmp_path, caplog):
    """Random bytes: never an answer."""
    caplog.set_level("WARNING", logger="r1llama")
    recipe = argv(grpo_recipe, tmp_path / "r.yaml", reward_funcs=["accuracy", "tests.training.rewards.letter_share"])
    grpo.main([*recipe, "--max_steps", "5"])
    (warning,) = [r.getMessage() for r in caplog.records if "has not varied" in r.getMessage()]
    assert warning.startswith("stuck: accuracy_reward has not varied for 5 steps: ")
    assert "have no </think>: max_completion_length is 12" in warning or "no completion contains <think>" in warning
    assert "of the verdicts are" in warning


def test_resumed_equals_uninterrupted(stage, tmp_path, caplog):
    """The newest checkpoint is torn, so it resumes from the one before, and says why."""
    main, recipe = stage
    main(argv(recipe, tmp_path / "r.yaml", save_steps=2))
    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    for name in ("checkpoint-2", "checkpoint-4", "metrics.jsonl"):
        copy = shutil.copytree if name.startswith("c") else shutil.copy
        copy(tmp_path / "out" / name, interrupted / name)
    (interrupted / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    with open(interrupted / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')

    caplog.set_level("INFO", logger="r1llama")
    main(argv(recipe, tmp_path / "r.yaml", save_steps=2, output_dir=str(interrupted)))
    assert "passed over checkpoint-4: optimizer.pt has 4 bytes" in caplog.text
    assert "resuming from" in caplog.text
    assert_same_weights(tmp_path / "out", interrupted)
    steps = [log["step"] for log in json_lines(interrupted / "metrics.jsonl") if "loss" in log]
    assert steps == [1, 2, 3, 4]


def test_resumed_equals_uninterrupted_in_a_later_epoch(grpo_recipe, tmp_path):
    """Four prompts, two a step: the checkpoint lies within the second epoch."""
    rows = [{"prompt": f"{a}=", "solution": str(a)} for a in range(4)]
    data = write_jsonl(tmp_path / "four.jsonl", rows)
    words = argv(grpo_recipe, tmp_path / "r.yaml", dataset_name=str(data), max_steps=5, save_steps=3)
    grpo.main(words)
    (tmp_path / "resumed").mkdir()
    shutil.copytree(tmp_path / "out" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    grpo.main([*words, "--output_dir", str(tmp_path / "resumed")])
    assert_same_weights(tmp_path / "out", tmp_path / "resumed")


def test_the_saved_recipe_resolves_to_the_same_run(stage, tmp_path):
    main, recipe = stage
    main(argv(recipe, tmp_path / "r.yaml", gradient_accumulation_steps=2, per_device_train_batch_size=4))
    saved = tmp_path / "out" / "recipe.yaml"
    main(["--config", str(saved), "--output_dir", str(tmp_path / "again")])
    assert_same_weights(tmp_path / "out", tmp_path / "again")
    again = yaml.safe_load((tmp_path / "again" / "recipe.yaml").read_text())
    assert again | {"output_dir": 0} == yaml.safe_load(saved.read_text()) | {"output_dir": 0}


def test_accumulation_equals_the_big_batch(sft_recipe, tmp_path):
    for name, per_device, accumulation in (("big", 8, 1), ("accumulated", 2, 4)):
        sft.main(
            argv(
                sft_recipe,
                tmp_path / "r.yaml",
                output_dir=str(tmp_path / name),
                per_device_train_batch_size=per_device,
                gradient_accumulation_steps=accumulation,
                optim="sgd",  # Adam would turn rounding of tiny gradients into full steps
                learning_rate=0.1,
            )
        )
    assert_same_weights(tmp_path / "big", tmp_path / "accumulated", rtol=1e-4, atol=1e-6)


def test_a_finished_run_has_nothing_left_to_do_until_asked_for_more(stage, tmp_path, caplog):
    main, recipe = stage
    metrics = main(argv(recipe, tmp_path / "r.yaml"))
    before = weights(tmp_path / "out")
    caplog.set_level("INFO", logger="r1llama")
    assert main(argv(recipe, tmp_path / "r.yaml")) == metrics
    assert "finished at step 4" in caplog.text
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "out").items())

    main(argv(recipe, tmp_path / "r.yaml", max_steps=6))
    steps = [log["step"] for log in json_lines(tmp_path / "out" / "metrics.jsonl") if "loss" in log]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_run_by_epochs_finishes_too(sft_recipe, tmp_path, caplog):
    caplog.set_level("INFO", logger="r1llama")
    for _ in range(2):
        sft.main(argv(sft_recipe, tmp_path / "r.yaml", max_steps=-1, num_train_epochs=2))
    assert "finished at step 8" in caplog.text


def test_start_over_ignores_and_outdates_old_checkpoints(sft_recipe, tmp_path):
    sft.main(argv(sft_recipe, tmp_path / "r.yaml", save_steps=2))
    sft.main(argv(sft_recipe, tmp_path / "r.yaml", resume_from_checkpoint=False, save_strategy="no"))
    assert len(json_lines(tmp_path / "out" / "metrics.jsonl")) == 5  # four steps and the summary
    names = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert names == ["checkpoint-2.aside", "checkpoint-4.aside"]


def test_old_checkpoints_go_only_when_a_newer_one_is_complete(sft_recipe, tmp_path):
    sft.main(argv(sft_recipe, tmp_path / "r.yaml", save_steps=1, save_total_limit=2))
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_a_checkpoint_of_the_model_only_is_not_resumed_from(sft_recipe, tmp_path, caplog):
    caplog.set_level("INFO", logger="r1llama")
    for _ in range(2):
        sft.main(argv(sft_recipe, tmp_path / "r.yaml", save_only_model=True))
    assert "passed over checkpoint-4: it holds the model only" in caplog.text
    assert caplog.text.count("no checkpoint to resume from") == 2


def test_a_directory_without_weights_starts_from_the_seed(sft_recipe, tmp_path, model_dir, caplog):
    bare = tmp_path / "bare"
    shutil.copytree(model_dir, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    caplog.set_level("INFO", logger="r1llama")
    for name in ("one", "two"):
        changes = {"model_name_or_path": str(bare), "output_dir": str(tmp_path / name)}
        sft.main(argv(sft_recipe, tmp_path / "r.yaml", **changes))
    assert "starting from random" in caplog.text
    assert_same_weights(tmp_path / "one", tmp_path / "two")


def test_experts_are_balanced_and_measured(stage, expert_dir, tmp_path):
    main, recipe = stage
    main(argv(recipe, tmp_path / "r.yaml", model_name_or_path=str(expert_dir)))
    assert_balanced(tmp_path / "out")


def test_multi_token_prediction_learns_in_sft_and_rests_in_grpo(stage, expert_dir, tmp_path):
    main, recipe = stage
    start = tmp_path / "start"
    shutil.copytree(expert_dir, start)
    config = AutoConfig.from_pretrained(start, num_mtp_layers=1)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(start)
    main(argv(recipe, tmp_path / "r.yaml", model_name_or_path=str(start), weight_decay=100.0))
    before, after = weights(start), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    names = [name for name in before if name.startswith("mtp.") and "bias" not in name]
    assert len(names) > 10
    moved = [not torch.equal(before[name], after[name]) for name in names]
    assert all(moved) if main is sft.main else not any(moved)
    logged = [log["loss/mtp"] for log in json_lines(tmp_path / "out" / "metrics.jsonl") if "loss/mtp" in log]
    assert len(logged) == (4 if main is sft.main else 0)
    gains = [after[f"mtp.layers.0.{norm}.weight"] for norm in ("enorm", "hnorm", "post_norm")]
    assert all((gain - 1).abs().max() < 0.01 for gain in gains)  # no decay
    assert after["model.embed_tokens.weight"].std() < 0.9 * before["model.embed_tokens.weight"].std()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_mtp_layers == 1


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_adapters_train_on_a_stock_llama(grpo_recipe, tmp_path, load_in_4bit):
    if load_in_4bit:
        pytest.importorskip("bitsandbytes")
    adapters = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]}
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", load_in_4bit=load_in_4bit, **adapters))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert any("lora" in name for name, _ in model.named_parameters())


def test_adapters_on_multi_token_prediction_learn_too(sft_recipe, expert_dir, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(expert_dir, start)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(start, num_mtp_layers=1)).save_pretrained(start)
    adapters = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]}
    sft.main(argv(sft_recipe, tmp_path / "r.yaml", model_name_or_path=str(start), **adapters))
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    up = {name: tensor for name, tensor in adapter.items() if "lora_B" in name}
    assert any("mtp." in name for name in up)
    assert all(tensor.any() for tensor in up.values())


def test_a_reference_model_is_a_copy_of_the_start(grpo_recipe, tmp_path):
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", beta=0.1, max_steps=2))
    logs = json_lines(tmp_path / "out" / "metrics.jsonl")
    assert logs[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert logs[1]["kl"] > 0


def test_chat_rows_and_a_system_prompt(grpo_recipe, tmp_path):
    rows = [{"prompt": [{"role": "user", "content": f"{a}+1="}]} for a in range(4)]
    data = write_jsonl(tmp_path / "chat.jsonl", rows)
    changes = {"dataset_name": str(data), "system_prompt": "Add.", "log_completions_steps": 1, "max_steps": 1}
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", **changes, reward_funcs=["format"]))
    sample = tables(tmp_path / "out")[0]
    assert sample["prompt"][0] == {"role": "system", "content": "Add."}
    assert sample["completion"][0]["role"] == "assistant"


def test_evaluation_on_a_held_out_split(sft_recipe, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        write_jsonl(data / f"{split}.jsonl", [{"prompt": f"{a}=", "completion": f"{a}"} for a in range(8)])
    changes = {"dataset_name": str(data), "eval_strategy": "steps", "eval_steps": 2}
    metrics = sft.main(argv(sft_recipe, tmp_path / "r.yaml", **changes))
    assert metrics["eval_loss"] > 0


def test_adapters_reach_the_experts_by_themselves(sft_recipe, expert_dir, tmp_path):
    changes = {"use_peft": True, "lora_r": 2, "model_name_or_path": str(expert_dir)}
    with pytest.raises(RecipeError, match=r"`lora_dropout: 0\.05`: adapters on experts can have none"):
        sft.main(argv(sft_recipe, tmp_path / "r.yaml", **changes))
    sft.main(argv(sft_recipe, tmp_path / "r.yaml", lora_dropout=0.0, **changes))
    saved = weights(tmp_path / "out", "adapter_model")
    assert all(tensor.any() for tensor in saved.values())
    for part in ("self_attn.q_proj", "shared_experts.up_proj", "mlp.experts"):
        assert any(part in name for name in saved), part


@pytest.mark.parametrize("version", ["0.33.0", None])
def test_without_the_right_vllm_transformers_makes_the_rollouts_and_one_line_says_so(
    grpo_recipe, tmp_path, monkeypatch, caplog, version
):
    only_vllm(monkeypatch, version)
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", use_vllm=True, max_steps=1))
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "use_vllm" in r.getMessage()]
    reason = f"vLLM {version} is not tested" if version else "vLLM is not installed"
    assert reason in line
    assert line.endswith("the rollouts are made by transformers' `generate` instead")
    assert (tmp_path / "out" / "all_results.json").exists()
