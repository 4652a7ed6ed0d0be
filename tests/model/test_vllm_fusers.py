"""vLLM's Transformers backend recognises latent attention and experts by tracing the forward: its own matchers, on our
modules. Runs where vLLM is installed."""

import types

import pytest
import torch

from .conftest import ATTENTION, MLP, tiny_model

pytest.importorskip("vllm")

from vllm.model_executor.models.transformers.fuser import get_fuser
from vllm.model_executor.models.transformers.fusers import MLAFuser
from vllm.model_executor.models.transformers.fusers.moe import MoEBlockFuser


def vllm_model(**switches):
    model = tiny_model(**switches)
    model.config._attn_implementation = "vllm"
    return model


@pytest.mark.parametrize("q_lora_rank", [None, 10])
def test_latent_attention_is_fused(q_lora_rank):
    attention = vllm_model(**ATTENTION["latent"] | {"q_lora_rank": q_lora_rank}).model.layers[0].self_attn
    fuser = get_fuser(attention, MLAFuser)
    assert fuser is not None
    assert (fuser.kv_a_proj_name, fuser.kv_b_proj_name) == ("kv_a_proj_with_mqa", "kv_b_proj")
    assert fuser.q_proj_name == (None if q_lora_rank else "q_proj")
    assert isinstance(fuser.fused_forward, types.FunctionType)  # the expansion was found and taken out


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
@pytest.mark.parametrize("n_shared_experts", [0, 1])
@pytest.mark.parametrize("groups", [{}, {"n_group": 3, "topk_group": 2}])
def test_experts_are_fused(scoring_func, n_shared_experts, groups):
    switches = MLP["experts"] | {"n_group": 1, "topk_group": 1} | groups
    switches |= {"scoring_func": scoring_func, "n_shared_experts": n_shared_experts}
    fuser = MoEBlockFuser.match(vllm_model(**switches).model.layers[-1].mlp, "experts")
    assert fuser is not None
    assert fuser.gate_name == "gate"
    assert fuser.scoring_func == scoring_func
    assert fuser.shared_name == ("shared_experts" if n_shared_experts else None)
    assert fuser.router_dtype == torch.float32
