"""Every combination of the switches, as tiny models."""

import os

import pytest
import torch

from r1llama import R1LlamaConfig, R1LlamaForCausalLM

if device := os.environ.get("R1LLAMA_TEST_DEVICE"):  # benchmarks/gpu.sh: cuda
    torch.set_default_device(device)

BASE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,  # wide enough for a wrong mask to move the logits
}
FULL, LINEAR = "full_attention", "linear_attention"
ATTENTION = {
    "grouped": {},
    "latent": {
        "kv_lora_rank": 12,
        "q_lora_rank": 10,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 5,
    },
    "linear": {"layer_types": [LINEAR] * 3},
    "linear-rope": {"layer_types": [LINEAR] * 3, "linear_use_rope": True},
    "grouped+linear": {"layer_types": [FULL, LINEAR, LINEAR], "linear_feature_map": "relu", "linear_decay": True},
    "linear-window": {
        "layer_types": [LINEAR] * 3,
        "linear_feature_map": "hedgehog",
        "linear_decay": True,
        "linear_window": 7,
    },
    "latent+linear": {"kv_lora_rank": 12, "layer_types": [LINEAR, FULL, LINEAR], "linear_use_rope": True},
}
MLP = {
    "dense": {},
    "experts": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_group": 3,
        "topk_group": 2,
    },
}
ROPE = {
    "rope": {},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
}
SWITCHES = {
    f"{a}-{m}-{r}": ATTENTION[a] | MLP[m] | ROPE[r]
    for a in ATTENTION
    for m in MLP
    for r in ROPE
    if not (a == "linear" and r == "yarn")  # no positions, no YaRN
    and not (a == "linear-window" and (m, r) != ("dense", "yarn"))
}


def tiny_config(**switches):
    return R1LlamaConfig(**BASE | switches)


def tiny_model(dtype=torch.float32, seed=0, **switches):
    torch.manual_seed(seed)
    model = R1LlamaForCausalLM(tiny_config(**switches))
    for name, buffer in model.named_buffers():  # a trained router
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.1)
    return model.to(dtype).eval()


def tokens(*shape, seed=1):
    generator = torch.Generator("cpu").manual_seed(seed)
    ids = torch.randint(1, BASE["vocab_size"], shape, generator=generator, device="cpu")
    return ids.to(torch.get_default_device())


@pytest.fixture(params=SWITCHES, ids=str)
def switches(request):
    return SWITCHES[request.param]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request):
    return request.param
