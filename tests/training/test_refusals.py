"""Every refusal comes before the model loads, and names the key, the numbers and the cure."""

import json
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from transformers import AutoTokenizer
from trl import GRPOConfig, ModelConfig, SFTConfig

from r1llama.training import grpo, recipe, sft, stage
from r1llama.training.checks import check_machine, check_values
from r1llama.training.recipe import RecipeError

from .conftest import argv, only_vllm, write_jsonl

STAGES = {"sft": sft, "grpo": grpo}


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """A refusal that came too late would reach this."""

    def too_late(*args):
        pytest.fail("the model was loaded")

    monkeypatch.setattr(stage, "load_model", too_late)


def refusal(name, recipe, tmp_path, *more, **changes) -> str:
    with pytest.raises(RecipeError) as caught:
        STAGES[name].main([*argv(recipe, tmp_path / "r.yaml", **changes), *more])
    return str(caught.value)


KEYS = [
    ({"lerning_rate": 1e-5}, ["r.yaml", "`lerning_rate`", "Did you mean `learning_rate`?"]),
    ({"max_prompt_length": 64}, ["`max_prompt_length` is gone", "shorten or filter"]),
    ({"torch_dtype": "auto"}, ["`torch_dtype` is gone", "`dtype`"]),
    ({"warmup_ratio": 0.1}, ["`warmup_ratio` is gone", "`warmup_steps`"]),
    ({"vllm_device": "cuda:3"}, ["`vllm_device` is gone", "`vllm_mode"]),
    ({"max_steps": "ten"}, ["`max_steps: ten`", "int"]),
    ({"max_steps": 2.5}, ["`max_steps: 2.5`", "int"]),
    ({"learning_rate": True}, ["`learning_rate: True`", "float"]),
    ({"bf16": "perhaps"}, ["bf16"]),
]
VALUES = [
    ({"model_name_or_path": None}, ["`model_name_or_path` is missing"]),
    ({"dataset_name": None}, ["`dataset_name` is missing"]),
    ({"output_dir": None}, ["`output_dir` is missing"]),
    ({"learning_rate": 0.0}, ["`learning_rate: 0.0`", "above 0"]),
    ({"learning_rate": -1e-5}, ["`learning_rate: -1e-05`"]),
    ({"learning_rate": float("nan")}, ["`learning_rate: nan`", "finite"]),
    ({"per_device_train_batch_size": 0}, ["`per_device_train_batch_size: 0`"]),
    ({"weight_decay": -0.1}, ["`weight_decay: -0.1`", "not be negative"]),
    ({"max_steps": -1, "num_train_epochs": 0}, ["max_steps", "num_train_epochs"]),
    ({"load_in_4bit": True}, ["use_peft"]),
    ({"muon": True, "use_peft": True}, ["`muon: true`", "`use_peft`"]),
    ({"muon": True, "optim": "sgd"}, ["`muon: true`", "`optim: sgd`"]),
    ({"muon": True, "fsdp": "full_shard"}, ["`muon: true`", "FSDP shards", "DDP"]),
]
PATHS = [
    ({"model_name_or_path": "./nowhere/model"}, ["`model_name_or_path: ./nowhere/model`", "does not exist"]),
    ({"dataset_name": "./nowhere/rows.jsonl"}, ["`dataset_name`", "./nowhere/rows.jsonl does not exist"]),
    ({"dataset_train_split": "validation"}, ["validation", "train"]),
    ({"task": "gsm9k"}, ["`task: gsm9k`", "r1llama.tasks.gsm9k"]),
    ({"task": "gsm8k"}, ["`task: gsm8k`", "prompt"]),
    ({"resume_from_checkpoint": "./nowhere/checkpoint-3"}, ["no such directory", "`auto`"]),
]
GROUPS = [
    ({"num_generations": 1}, ["`num_generations: 1`", "at least 2"]),
    ({"num_generations": 3}, ["batch of 8", "`num_generations: 3`", "`num_generations: 2` fits", "size: 9`"]),
    ({"generation_batch_size": 12}, ["`generation_batch_size: 12`", "multiple of", "8"]),
    ({"generation_batch_size": 16, "steps_per_generation": 2}, ["set one of them"]),
    ({"top_p": 1.5}, ["`top_p: 1.5`"]),
    ({"temperature": 0}, ["`temperature: 0"]),
]
REWARDS = [
    ({"reward_funcs": ["acuracy"]}, ["`reward_funcs`", "acuracy", "accuracy"]),
    ({"reward_funcs": ["tests.training.rewards.nothing"]}, ["`reward_funcs`", "nothing"]),
    ({"reward_funcs": ["tests.training.rewards.needs_level"]}, ["needs_level", "`level`", "prompt, solution"]),
    ({"reward_weights": [1.0, 2.0]}, ["`reward_weights` has 2 numbers for 1 rewards"]),
    ({"max_completion_length": 126}, ["16 of 16 prompts", "row 0: 4 tokens", "126", "context of 128"]),
]
SERVER = {"use_vllm": True, "vllm_mode": "server"}
VLLM = [
    ({"use_vllm": True, "vllm_mode": "serve"}, ["`vllm_mode: serve`", "colocate or server"]),
    ({"use_vllm": True, "vllm_server_port": 8123}, ["`vllm_server_port: 8123`", "`vllm_mode: server`"]),
    ({"use_vllm": True, "vllm_gpu_memory_utilization": 30}, ["`vllm_gpu_memory_utilization: 30.0`", "(0, 1]"]),
    ({"use_vllm": True, "vllm_enable_sleep_mode": True}, ["`vllm_enable_sleep_mode: true`", "GPU"]),
    ({"use_vllm": True, "use_peft": True, "load_in_4bit": True}, ["`use_vllm: true`", "4 or 8 bits"]),
    (SERVER | {"vllm_max_model_length": 64}, ["`vllm_max_model_length: 64`", "the server"]),
]


@pytest.mark.parametrize(("changes", "said"), KEYS + VALUES + PATHS)
@pytest.mark.parametrize("name", STAGES)
def test_both_stages_refuse(name, changes, said, tmp_path, request):
    message = refusal(name, request.getfixturevalue(f"{name}_recipe"), tmp_path, **changes)
    assert all(words in message for words in said), message


@pytest.mark.parametrize(("changes", "said"), GROUPS + REWARDS + VLLM)
def test_grpo_refuses(changes, said, grpo_recipe, tmp_path):
    message = refusal("grpo", grpo_recipe, tmp_path, **changes)
    assert all(words in message for words in said), message


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("group", [3, 5, 6, 7, 16])
def test_the_cures_for_groups_are_cures(ranks, group, grpo_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))

    def complaint(**changes):
        """What `check_values` says; the dataclasses, which would start `ranks` processes, are not built."""

        def check(values):
            check_values(values)
            raise RecipeError("fine")

        words = argv(grpo_recipe, tmp_path / "r.yaml", **changes)
        with pytest.raises(RecipeError) as caught:
            recipe.read((grpo.GRPOArguments, GRPOConfig, ModelConfig), words, check)
        return str(caught.value)

    message = complaint(num_generations=group)
    if 8 * ranks % group:
        cures = message.partition(f"`num_generations: {group}`: ")[2].split("`")[1::2]
        assert len(cures) == 2
        for cure in cures:
            key, value = cure.split(": ")
            assert complaint(**{"num_generations": group, key: int(value)}) == "fine"
    else:
        assert message == "fine"


def test_deepspeed_and_the_recipe_must_agree_on_the_precision(sft_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    message = refusal("sft", sft_recipe, tmp_path)
    assert "`mixed_precision: bf16`, but `bf16: False`" in message


def test_the_command_line_is_checked_too(sft_recipe, tmp_path):
    assert "Did you mean `max_steps`?" in refusal("sft", sft_recipe, tmp_path, "--max_step", "3")
    assert "`warmup_ratio` is gone" in refusal("sft", sft_recipe, tmp_path, "--warmup_ratio=0.1")


def test_recipe_files(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    for path, said in ((tmp_path / "none.yaml", "No such file"), (broken, "not YAML")):
        with pytest.raises(RecipeError, match=said):
            sft.main(["--config", str(path)])


def test_no_gone_key_is_a_live_one():
    live = {field.name for kind in (GRPOConfig, SFTConfig, ModelConfig, grpo.GRPOArguments) for field in fields(kind)}
    assert not live & recipe.GONE_KEYS.keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a", "solution": "1"}\n{"prompt": \n', ":2: not JSON"),
        ('{"prompt": "a", "solution": "1"}\n[1]\n', ":2: a row must be an object"),
        ("", "is empty"),
    ],
)
def test_malformed_rows_name_the_file_and_the_line(text, said, grpo_recipe, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(text)
    message = refusal("grpo", grpo_recipe, tmp_path, dataset_name=str(data))
    assert str(data) in message
    assert said in message


@pytest.mark.parametrize("prompt", ["", None, 7, {"a": 1}])
def test_a_row_without_a_usable_prompt(prompt, grpo_recipe, tmp_path):
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "1+1=", "n": 1}, {"prompt": prompt, "n": 2}])
    assert f"{data}:2: `prompt` must be text" in refusal("grpo", grpo_recipe, tmp_path, dataset_name=str(data))


def test_a_dataset_without_prompts(grpo_recipe, tmp_path):
    data = write_jsonl(tmp_path / "rows.jsonl", [{"exercise": "1+1?", "solution": "2"}])
    assert "columns exercise, solution, of which no problem" in refusal(
        "grpo", grpo_recipe, tmp_path, dataset_name=str(data)
    )


def edited(model_dir, tmp_path, edit):
    """A copy of the model directory with an edited tokenizer."""
    folder = tmp_path / "edited"
    shutil.copytree(model_dir, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    edit(tokenizer)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_chat_rows_need_a_template(grpo_recipe, sft_recipe, model_dir, tmp_path):
    folder = edited(model_dir, tmp_path, lambda tokenizer: setattr(tokenizer, "chat_template", None))
    turn = [{"role": "user", "content": "1+1="}]
    row = {"prompt": turn, "completion": [{"role": "assistant", "content": "2"}], "solution": "2"}
    data = write_jsonl(tmp_path / "chat.jsonl", [row])
    for name, recipe_values in (("grpo", grpo_recipe), ("sft", sft_recipe)):
        changes = {"dataset_name": str(data), "model_name_or_path": folder}
        assert "no chat template" in refusal(name, recipe_values, tmp_path, **changes)


def test_a_tokenizer_larger_than_the_model(sft_recipe, model_dir, tmp_path):
    folder = edited(model_dir, tmp_path, lambda tokenizer: tokenizer.add_tokens(["a new one"]))
    message = refusal("sft", sft_recipe, tmp_path, model_name_or_path=folder)
    assert "has 263 tokens" in message
    assert "`vocab_size: 262`" in message


def test_sft_without_anything_to_learn(sft_recipe, problems, tmp_path):
    message = refusal("sft", sft_recipe, tmp_path, dataset_name=str(problems))
    assert "columns prompt, solution" in message
    assert "`prompt` and `completion`" in message


def test_tags_must_not_be_special_tokens(grpo_recipe, model_dir, tmp_path):
    folder = edited(
        model_dir, tmp_path, lambda t: t.add_special_tokens({"extra_special_tokens": ["<think>", "</think>"]})
    )
    assert "<think> is a special token" in refusal("grpo", grpo_recipe, tmp_path, model_name_or_path=folder)


def test_a_tokenizer_that_pads_with_eos_gets_its_own_padding(model_dir, tmp_path):
    def same(tokenizer):
        tokenizer.pad_token = tokenizer.eos_token

    folder = edited(model_dir, tmp_path, same)
    model_args = ModelConfig(model_name_or_path=folder)
    tokenizer = stage.load_tokenizer(model_args, stage.load_config(model_args, False), trust_remote_code=False)
    assert tokenizer.pad_token == "<pad>"


def test_sft_beyond_the_context(sft_recipe, tmp_path):
    assert "set it to 128 tokens or less" in refusal("sft", sft_recipe, tmp_path, max_length=129)


def test_output_that_cannot_be_written(sft_recipe, tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal("sft", sft_recipe, tmp_path, output_dir=str(tmp_path / "file" / "out"))
    assert "`output_dir:" in message
    assert "cannot be written" in message


def test_a_full_disk(sft_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 2**20, 2**20))
    assert "has 1 MiB left" in refusal("sft", sft_recipe, tmp_path)


def test_bf16_on_a_gpu_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **kwargs: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a Tesla T4")
    values = {"output_dir": tmp_path, "model_name_or_path": str(tmp_path), "bf16": True, "use_cpu": False}
    with pytest.raises(RecipeError, match="Tesla T4 has none; set `bf16: false` and `fp16: true`"):
        check_machine(values)


def test_a_library_outside_the_tested_range(grpo_recipe, tmp_path, monkeypatch):
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").touch()
    for name, version, more in (
        ("bitsandbytes", "0.10.0+cpu", ""),
        ("r1llama", "0.1.0", 'Requires-Dist: bitsandbytes>=0.22; extra == "quant"\n'),
    ):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}")
        (folder / "top_level.txt").write_text(name)
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal("grpo", grpo_recipe, tmp_path, use_peft=True, load_in_4bit=True)
    assert "bitsandbytes 0.10.0+cpu is outside the tested range >=0.22" in message


@pytest.mark.parametrize("version", ["0.10.0+cpu", None])
def test_a_server_without_a_client(grpo_recipe, tmp_path, monkeypatch, version):
    only_vllm(monkeypatch, version)
    message = refusal("grpo", grpo_recipe, tmp_path, **SERVER)
    assert f"`vllm_mode: server`, but vLLM {version or 'is not installed'}" in message
    assert "`use_vllm: false`" in message


@pytest.mark.slow
def test_a_refusal_is_one_line_and_status_2(sft_recipe, tmp_path):
    """As the user meets it: no traceback, no usage."""
    command = [sys.executable, "-m", "r1llama.training.sft", *argv(sft_recipe, tmp_path / "r.yaml", lerning_rate=1)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("r1llama: ")
    assert "Traceback" not in ended.stderr


def test_the_hub_token_is_not_written_down(sft_recipe, tmp_path):
    *_, values = recipe.read(
        (stage.StageArguments, SFTConfig, ModelConfig), argv(sft_recipe, tmp_path / "r.yaml", hub_token="hf_secret")
    )
    assert "hf_secret" not in json.dumps(values, default=str)
