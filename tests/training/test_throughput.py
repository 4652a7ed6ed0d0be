"""The arithmetic behind MFU is what the model really multiplies."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from r1llama import R1LlamaConfig
from r1llama.training.throughput import known_peak, peak_flops, training_flops

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_implementation": "eager",
}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 20}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES, tie_word_embeddings=False),
        LlamaConfig(**SIZES, tie_word_embeddings=True),
        R1LlamaConfig(**SIZES, **LATENT),
        R1LlamaConfig(**SIZES, **EXPERTS, first_k_dense_replace=1),
    ],
    ids=["llama", "tied", "latent", "experts"],
)
def test_flops_are_those_that_are_counted(config):
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    ids = torch.randint(0, 96, (1, 48))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    assert counter.get_total_flops() == pytest.approx(48 * training_flops(config, 48), rel=0.01)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("Tesla T4", None),
    ],
)
def test_gpus_are_known_by_name(name, teraflops):
    assert known_peak(name) == (teraflops and teraflops * 1e12)


def test_other_hardware_is_measured():
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e14
