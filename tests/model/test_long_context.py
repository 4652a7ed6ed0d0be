"""YaRN is transformers' and vLLM's, for either kind of attention, in either precision, extended once or twice."""

import pytest
import torch
from torch.testing import assert_close
from transformers import DeepseekV3Config, LlamaConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from r1llama.model import extend_context

from .conftest import ATTENTION, tiny_config, tiny_model

SHAPE = {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
LATENT = ATTENTION["latent"] | {"qk_rope_head_dim": 16}
POSITIONS = torch.tensor([[0, 1, 5, 127, 128, 300, 511]])


def cos_sin(model):
    return torch.stack(model.model.rotary_emb(torch.zeros(1, dtype=torch.float32), POSITIONS))


def yarn(factor=4.0, **more):
    return {"rope_type": "yarn", "rope_theta": 500_000.0, "factor": factor, "original_max_position_embeddings": 128}


@pytest.mark.parametrize("attention", [{}, LATENT], ids=["grouped", "latent"])
def test_cos_and_sin_are_llamas(dtype, attention):
    """Also in a bf16 model: its frequencies stay fp32."""
    config = extend_context(tiny_config(**SHAPE, **attention), 4)
    ours = cos_sin(tiny_model(dtype, **SHAPE | attention | {"rope_parameters": dict(config.rope_parameters)}))
    scale = {"attention_factor": 1.0} if attention else {}  # under latent attention the softmax is scaled instead
    peer = LlamaRotaryEmbedding(LlamaConfig(head_dim=16, max_position_embeddings=512, rope_parameters=yarn() | scale))
    assert_close(ours, torch.stack(peer(torch.zeros(1), POSITIONS)), rtol=0, atol=0)
    plain = cos_sin(tiny_model(**SHAPE))
    assert (ours - plain).abs().max() > 0.1
    assert config.max_position_embeddings == 512
    assert config.rope_parameters["original_max_position_embeddings"] == 128


@pytest.mark.parametrize("factor", [2.0, 40.0])
def test_latent_attention_scales_the_softmax_like_deepseek(factor):
    config = extend_context(tiny_config(**SHAPE, **LATENT), factor)
    model = tiny_model(**SHAPE | LATENT | {"rope_parameters": dict(config.rope_parameters)})
    peer = DeepseekV3Attention(
        DeepseekV3Config(
            **LATENT, num_attention_heads=4, rope_parameters=yarn(factor) | {"mscale": 1.0, "mscale_all_dim": 1.0}
        ),
        layer_idx=0,
    )
    assert model.model.layers[0].self_attn.scaling == pytest.approx(peer.scaling)


@pytest.mark.parametrize("attention", [{}, LATENT], ids=["grouped", "latent"])
def test_extending_twice_is_extending_once(attention):
    config = tiny_config(**SHAPE, **attention)
    before = config.to_dict()
    twice = extend_context(extend_context(config, 2), 2.5)
    assert twice.to_dict() == extend_context(config, 5).to_dict()
    assert config.to_dict() == before


def test_only_the_context_changes(tmp_path):
    model = tiny_model(**SHAPE)
    model.save_pretrained(tmp_path)
    config = extend_context(type(model.config).from_pretrained(tmp_path), 3)
    changed = {key for key, value in config.to_dict().items() if value != model.config.to_dict().get(key)}
    assert changed <= {"rope_parameters", "max_position_embeddings", "architectures", "auto_map", "dtype"}
    loaded = type(model).from_pretrained(tmp_path, config=config)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    assert loaded.config.rope_parameters["factor"] == 3.0


@pytest.mark.parametrize(
    ("switches", "factor", "words"),
    [
        ({}, 1.0, "above 1"),
        ({}, 0.5, "above 1"),
        (ATTENTION["linear"], 4, "needs no extension"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, 4, "'linear'"),
        ({"rope_parameters": yarn() | {"attention_factor": 1.2}}, 4, "attention_factor"),
    ],
)
def test_refusals(switches, factor, words):
    with pytest.raises(ValueError, match=words):
        extend_context(tiny_config(**switches), factor)


@pytest.mark.parametrize("attention", [{}, LATENT], ids=["grouped", "latent"])
def test_cos_and_sin_are_vllms(attention):
    pytest.importorskip("vllm")
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope

    config = extend_context(tiny_config(**SHAPE, **attention), 4)
    with set_current_vllm_config(VllmConfig()):
        peer = get_rope(16, 512, rope_parameters=dict(config.rope_parameters), dtype=torch.float32)
    cos, sin = peer.cos_sin_cache[POSITIONS[0]].chunk(2, dim=-1)
    ours = cos_sin(tiny_model(**SHAPE | attention | {"rope_parameters": dict(config.rope_parameters)}))[:, 0]
    assert_close(ours, torch.stack([torch.cat([x, x], -1) for x in (cos, sin)]), atol=1e-5, rtol=0)
