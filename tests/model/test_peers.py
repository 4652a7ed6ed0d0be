"""The same weights in transformers' own models give the same logits."""

import pytest
import torch
from torch.testing import assert_close
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

from r1llama import R1LlamaForCausalLM

from .conftest import BASE, tiny_config, tokens

DEEPSEEK = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 2,
    "moe_intermediate_size": 20,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rope", [None, YARN])
@torch.no_grad()
def test_without_switches_it_is_llama_to_the_bit(dtype, rope, tmp_path):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**BASE, rope_parameters=rope and dict(rope))).save_pretrained(tmp_path)
    llama = LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    ours = R1LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    ids = tokens(3, 40)
    mask = torch.ones_like(ids)
    assert torch.equal(ours(ids).logits, llama(ids).logits)
    mask[0, :9] = 0
    assert torch.equal(ours(ids, attention_mask=mask).logits, llama(ids, attention_mask=mask).logits)
    options = {"max_new_tokens": 10, "do_sample": False}
    assert ours.generate(ids, **options).tolist() == llama.generate(ids, **options).tolist()


@pytest.mark.parametrize("q_lora_rank", [None, 10])
@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize(
    "rope", [None, YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, YARN | {"mscale": 0.7, "mscale_all_dim": 0.4}]
)
@torch.no_grad()
def test_latent_attention_and_experts_are_deepseek_v3(q_lora_rank, interleave, rope):
    torch.manual_seed(0)
    options = BASE | DEEPSEEK | {"q_lora_rank": q_lora_rank, "rope_interleave": interleave, "rms_norm_eps": 1e-6}
    peer = DeepseekV3ForCausalLM(
        DeepseekV3Config(**options, n_routed_experts=16, num_mtp_layers=0, rope_parameters=rope and dict(rope))
    ).eval()
    for name, buffer in peer.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.2)
    ours = R1LlamaForCausalLM(tiny_config(**options, num_experts=16, rope_parameters=rope and dict(rope))).eval()
    ours.load_state_dict(peer.state_dict())

    ids = tokens(2, 40)
    assert_close(ours(ids).logits, peer(ids).logits, atol=1e-5, rtol=1e-5)
    cached = ours.generate(ids, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True)
    expected = peer.generate(ids, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert cached.sequences.tolist() == expected.sequences.tolist()
    assert_close(torch.stack(cached.logits), torch.stack(expected.logits), atol=1e-5, rtol=1e-4)  # absorbed

    cache = cached.past_key_values.layers[1]  # the latent and the shared rotary key, nothing else
    assert cache.keys.shape == (2, 1, 51, 12)
    assert cache.values.shape == (2, 1, 51, 4)
