"""Naive, chunked and recurrent linear attention give the same numbers and gradients."""

import pytest
import torch
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from r1llama.model.linear_attention import (
    FEATURE_MAPS,
    chunked_linear_attention,
    naive_linear_attention,
    recurrent_linear_attention,
)


def operands(S, D=6, Dv=None, rope=False, feature_map="elu", B=2, H=3, dtype=torch.float64):
    torch.manual_seed(S)
    q, k, v = (torch.randn(B, H, S, d, dtype=dtype) for d in (D, D, Dv or D))
    q, k = FEATURE_MAPS[feature_map](q), FEATURE_MAPS[feature_map](k)
    q_rot, k_rot = q, k
    if rope:
        angles = torch.arange(S)[:, None] / 10 ** torch.arange(D // 2)
        angles = torch.cat([angles, angles], -1).to(dtype)[None]
        q_rot, k_rot = apply_rotary_pos_emb(q, k, angles.cos(), angles.sin())
    return [x.clone().requires_grad_() for x in (q, k, v, q_rot, k_rot)]


@pytest.mark.parametrize("S", [1, 3, 64, 65, 130])
@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_chunked_is_naive(S, rope, packed):
    inputs = operands(S, rope=rope)
    segments = torch.tensor([0, 0, 1, 2, 2, 2, 7]).repeat_interleave(23)[:S].expand(2, -1) if packed else None
    outputs = []
    for function in (naive_linear_attention, chunked_linear_attention):
        out = function(*inputs, segment_ids=segments)
        out = out[0] if isinstance(out, tuple) else out
        outputs.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for fast, naive in zip(*outputs, strict=True):
        assert_close(fast, naive)


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("splits", [(1, 2, 67, 1, 1), (40, 1, 31), (72,)])
def test_state_carries_over(rope, splits):
    """Pieces that hand on their state equal one run, with gradients, also one token at a time."""
    inputs = operands(72, rope=rope)
    expected, final = chunked_linear_attention(*inputs, chunk_size=16)
    state, parts = torch.zeros_like(final), []
    for piece in zip(*(x.split(splits, dim=2) for x in inputs), strict=True):
        step = recurrent_linear_attention if piece[0].shape[2] == 1 else chunked_linear_attention
        out, state = step(*piece, state)
        parts.append(out)
    assert_close(torch.cat(parts, 2), expected)
    assert_close(state, final)
    gradients = torch.autograd.grad(torch.cat(parts, 2).square().sum(), inputs)
    for piecewise, whole in zip(gradients, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
        assert_close(piecewise, whole)


def test_padding_adds_nothing():
    q, k, v, _, _ = operands(70)
    k = torch.cat([torch.zeros_like(k[:, :, :5]), k[:, :, 5:]], 2)
    padded, state = chunked_linear_attention(q, k, v, q, k)
    q, k, v = (x[:, :, 5:] for x in (q, k, v))
    alone, alone_state = chunked_linear_attention(q, k, v, q, k)
    assert_close(padded[:, :, 5:], alone)
    assert_close(state, alone_state)
    assert not padded[:, :, :5].any()


def test_it_is_an_average_of_the_values():
    q, k, _, _, _ = operands(50, feature_map="elu")
    out, _ = chunked_linear_attention(q, k, torch.full_like(q, 3.0), q, k)
    assert_close(out, torch.full_like(out, 3.0))
