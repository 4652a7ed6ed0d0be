import pytest
import torch
from torch import nn
from torch.testing import assert_close

from .conftest import ATTENTION, tiny_model, tokens


@pytest.fixture(params=[(12, 6, 4, 5), (4, 6, 4, 5), (24, 3, 2, 8)], ids=str)
def attention(request):
    """One attention layer; the first and third rank cost more than they save once there are enough queries."""
    rank, nope, rope, value = request.param
    model = tiny_model(kv_lora_rank=rank, qk_nope_head_dim=nope, qk_rope_head_dim=rope, v_head_dim=value)
    return model.model.layers[0].self_attn


def expanded_attention(self, q_nope, q_pe, latent, k_pe, mask):
    key, value = self.expand_kv(latent, k_pe)
    scores = torch.cat([q_nope, q_pe], -1) @ key.mT * self.scaling
    return (scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value).transpose(1, 2).flatten(2)


@torch.no_grad()
@pytest.mark.parametrize(("S", "T"), [(1, 1), (1, 33), (7, 7), (5, 40)])
def test_absorbed_is_expanded(attention, S, T):
    H = attention.num_heads
    q_nope, q_pe = torch.randn(2, H, S, attention.qk_nope_head_dim), torch.randn(2, H, S, attention.qk_rope_head_dim)
    latent, k_pe = torch.randn(2, 1, T, attention.kv_lora_rank), torch.randn(2, 1, T, attention.qk_rope_head_dim)
    mask = torch.ones(S, T, dtype=torch.bool).tril(T - S).expand(2, 1, S, T).clone()
    mask[0, :, :, : (T - S) // 2] = False
    expected = expanded_attention(attention, q_nope, q_pe, latent, k_pe, mask)
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    for form in (mask, additive):
        assert_close(attention.absorbed_attention(q_nope, q_pe, torch.cat([latent, k_pe], -1), form), expected)


def test_the_rule_counts_multiplications(attention):
    r, dn, dr, dv = (
        getattr(attention, n) for n in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    for S in range(1, 65):
        for T in (S, S + 1, S + 40, 4096):
            expanded = T * r * (dn + dv) + S * T * (dn + dr + dv)
            absorbed = S * r * (dn + dv) + S * T * (2 * r + dr)
            assert attention.is_absorbed(S, T) == (absorbed < expanded)
    attention.config._attn_implementation = "eager"
    assert not attention.is_absorbed(1, 4096)


def test_gradients_of_absorbed_are_those_of_expanded(attention):
    """Small ranks are absorbed in training too."""
    x = torch.randn(2, 9, 32)
    positions = torch.randn(2, 1, 9, attention.qk_rope_head_dim).unbind(1) * 2
    gradients = []
    for absorbed in (True, False):
        attention.is_absorbed = lambda S, T, absorbed=absorbed: absorbed
        attention.zero_grad()
        attention(x, positions)[0].square().sum().backward()
        gradients.append([p.grad.clone() for p in attention.parameters()])
    for ours, expected in zip(*gradients, strict=True):
        assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_decode_with_the_masks_of_flash_attention(attention):
    H, r, dr = attention.num_heads, attention.kv_lora_rank, attention.qk_rope_head_dim
    q_nope, q_pe = torch.randn(2, H, 1, attention.qk_nope_head_dim), torch.randn(2, H, 1, dr)
    joint = torch.randn(2, 1, 7, r + dr)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    alone = attention.absorbed_attention(q_nope[:1], q_pe[:1], joint[:1, :, 2:], None)
    assert_close(attention.absorbed_attention(q_nope, q_pe, joint, mask)[:1], alone)


@torch.no_grad()
def test_decode_reads_adapters_on_kv_b_proj():
    """Absorption must not take the bare weight of a projection that something wraps."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny_model(**ATTENTION["latent"]), LoraConfig(target_modules=["kv_b_proj"], r=2, init_lora_weights=False)
    ).eval()
    ids = tokens(2, 15)
    cached = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    assert (
        cached.tolist() == model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, use_cache=False).tolist()
    )
    with model.disable_adapter():
        assert model.generate(input_ids=ids, max_new_tokens=8, do_sample=False).tolist() != cached.tolist()
    layer = model.base_model.model.model.layers[0].self_attn
    assert type(layer.kv_b_proj) is not nn.Linear
