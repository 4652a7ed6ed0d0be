"""Pretraining: packed blocks, streams that resume where they stopped, schedules that are kept."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1llama import R1LlamaConfig
from r1llama.training import pretrain

from .conftest import argv, byte_tokenizer, json_lines, tiny_config, write_jsonl

LENGTHS = [3, 70, 1, 20, 200, 0, 9]  # in bytes, which are the tokens


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Forty short texts and long ones, as JSON lines."""
    rows = [{"text": f"{i} " + "abcdefghij"[i % 10] * LENGTHS[i % len(LENGTHS)]} for i in range(40)]
    return write_jsonl(tmp_path_factory.mktemp("data") / "documents.jsonl", rows)


@pytest.fixture
def recipe(tmp_path, documents, tokenizer):
    """Six steps of a tiny r1llama from scratch."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = R1LlamaConfig(
        **tiny_config(tokenizer).to_diff_dict() | {"layer_types": ["full_attention", "linear_attention"]}
    )
    values = config.to_diff_dict()
    for key in ("vocab_size", "eos_token_id", "pad_token_id", "bos_token_id"):
        values.pop(key, None)
    (tmp_path / "model.json").write_text(json.dumps(values))
    return {
        "config_name": str(tmp_path / "model.json"),
        "tokenizer_name": str(tmp_path / "tokenizer"),
        "dataset_name": str(documents),
        "output_dir": str(tmp_path / "out"),
        "max_length": 32,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }


def test_a_model_from_scratch(recipe, tmp_path, tokenizer):
    pretrain.main(argv(recipe, tmp_path / "r.yaml"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.model_type == "r1llama"
    assert model.config.vocab_size == len(tokenizer) == len(AutoTokenizer.from_pretrained(tmp_path / "out"))
    assert model.config.eos_token_id == tokenizer.eos_token_id
    losses = [log["loss"] for log in json_lines(tmp_path / "out" / "metrics.jsonl") if "loss" in log]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
