"""Naive, chunked and recurrent linear attention give the same numbers and gradients; the hybrid is softmax where its
window reaches."""

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from r1llama.model import linear_attention
from r1llama.model.linear_attention import FEATURE_MAPS, R1LlamaLinearAttention
from r1llama.model.linear_functions import (
    chunked_linear_sums,
    linear_sums,
    naive_hybrid_attention,
    naive_linear_sums,
    normalise,
    recurrent_linear_sums,
    window_sums,
)

from .conftest import LINEAR, tiny_config, tiny_model, tokens

B, H, K, D = 2, 4, 2, 6
HYBRID = {"layer_types": [LINEAR] * 3, "linear_feature_map": "hedgehog", "linear_window": 24}


def operands(S, decay=False, feature_map="elu", requires_grad=True):
    """q, k, v with its column of ones, and the logarithm of the decay or None. Six tokens are padding."""
    torch.manual_seed(S)
    q, k, v = (torch.randn(B, heads, S, D, dtype=torch.float64) for heads in (H, K, K))
    q, k = FEATURE_MAPS[feature_map](q), FEATURE_MAPS[feature_map](k)
    real = torch.ones(B, S, dtype=torch.float64)
    real[0, :4] = real[1, S // 2 : S // 2 + 2] = 0
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1) * real[:, None, :, None]
    log_decay = torch.tensor([-0.03, -0.9]).double()[:, None] * real[:, None] if decay else None
    return [x.detach().requires_grad_(requires_grad) for x in (q, k, v)], log_decay


def segments(S, packed):
    return torch.tensor([0, 0, 1, 2, 2, 2, 7]).repeat_interleave(23)[:S].expand(B, -1) if packed else None


def assert_same_with_gradients(fast, naive, inputs):
    """Equal outputs, and equal gradients of a loss that no symmetry can cancel."""
    assert_close(fast, naive)
    factor = torch.randn_like(naive)
    gradients = (torch.autograd.grad((out * factor).sum(), inputs, allow_unused=True) for out in (fast, naive))
    for fast_gradient, naive_gradient in zip(*gradients, strict=True):
        assert_close(fast_gradient, naive_gradient)


@pytest.mark.parametrize("S", [1, 3, 64, 65, 130])
@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_chunked_is_naive(S, decay, packed):
    inputs, log_decay = operands(S, decay)
    segment_ids = segments(S, packed)
    fast, _ = chunked_linear_sums(*inputs, log_decay=log_decay, segment_ids=segment_ids)
    assert_same_with_gradients(fast, naive_linear_sums(*inputs, log_decay, segment_ids), inputs)


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("splits", [(1, 2, 67, 1, 1), (40, 1, 31), (72,)])
def test_state_carries_over(decay, splits):
    """Pieces that hand on their state equal one run, with gradients, also one token at a time."""
    inputs, log_decay = operands(72, decay)
    expected, final = chunked_linear_sums(*inputs, log_decay=log_decay, chunk_size=16)
    state, parts = torch.zeros_like(final), []
    decays = [None] * len(splits) if log_decay is None else log_decay.split(splits, dim=2)
    for *piece, piece_decay in zip(*(x.split(splits, dim=2) for x in inputs), decays, strict=True):
        step = recurrent_linear_sums if piece[0].shape[2] == 1 else chunked_linear_sums
        out, state = step(*piece, state, piece_decay)
        parts.append(out)
    assert_close(state, final)
    assert_same_with_gradients(torch.cat(parts, 2), expected, inputs)


@pytest.mark.parametrize("decay", [False, True])
def test_padding_adds_nothing_and_ages_nothing(decay):
    """Wherever it stands: the same tokens without it give the same sums and state."""
    (q, k, v), log_decay = operands(70, decay)
    sums, state = linear_sums(q, k, v, log_decay=log_decay)
    for b in range(B):
        real = v[b, 0, :, -1] > 0
        alone = [x[b : b + 1, :, real] for x in (q, k, v)]
        decay_alone = None if log_decay is None else log_decay[b : b + 1, :, real]
        sums_alone, state_alone = linear_sums(*alone, log_decay=decay_alone)
        assert_close(sums[b : b + 1, :, real], sums_alone)
        assert_close(state[b : b + 1], state_alone)
    assert not normalise(sums)[0, :, :4].any()


@pytest.mark.parametrize("decay", [False, True])
def test_it_is_an_average_of_the_values(decay):
    (q, k, v), log_decay = operands(150, decay)
    v = torch.cat([torch.full_like(v[..., :-1], 3.0), torch.ones_like(v[..., -1:])], -1)
    out = normalise(linear_sums(q, k, v, log_decay=log_decay)[0])
    assert_close(out, torch.full_like(out, 3.0))


@pytest.mark.parametrize("S", [1, 5, 11, 40])
@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_hybrid_is_naive(S, decay, packed):
    W = 5
    (q_features, k_features, v), log_decay = operands(S, decay)
    torch.manual_seed(0)
    q, k = (torch.randn(B, heads, S, D, dtype=torch.float64, requires_grad=True) for heads in (H, K))
    weight = torch.randn(H, dtype=torch.float64, requires_grad=True)
    segment_ids = segments(S, packed)
    expected = naive_hybrid_attention(q, k, v, q_features, k_features, W, 0.4, weight, log_decay, segment_ids)

    past = [torch.nn.functional.pad(x, (0, 0, W, 0)) for x in (k, v, k_features)]
    v_left, padded = past[1][:, :, :S], None
    if packed:
        padded = torch.nn.functional.pad(segment_ids, (W, 0), value=-1)
        v_left = v_left * (padded[:, :S] == segment_ids)[:, None, :, None]
    sums, _ = linear_sums(q_features, past[2][:, :, :S], v_left, log_decay=log_decay, segment_ids=segment_ids)
    near = window_sums(q, past[0], past[1], 0.4, padded)
    out = normalise(sums + near * weight.exp()[:, None, None])
    assert_same_with_gradients(out, expected, [q, k, v, q_features, k_features, weight])


def naive_layer(layer, hidden_states, cos, sin):
    """The hybrid layer of a whole text, from the definition."""
    shape = (*hidden_states.shape[:-1], -1, layer.head_dim)
    q, k, v = (p(hidden_states).view(shape).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    features = layer.q_feature_map(q), layer.k_feature_map(k)
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    log_decay = layer.log_decay(q, None) if layer.config.linear_decay else None
    out = naive_hybrid_attention(q, k, v, *features, layer.window, layer.scaling, layer.log_window_weight, log_decay)
    return layer.o_proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("feature_map", ["elu", "hedgehog"])
@pytest.mark.parametrize("decay", [False, True])
def test_hybrid_layer_is_its_definition(feature_map, decay):
    """All at once, in pieces and token by token, with every parameter's gradient."""
    switches = HYBRID | {"linear_feature_map": feature_map, "linear_decay": decay, "linear_window": 6}
    config = tiny_config(**switches)
    torch.manual_seed(0)
    layer = R1LlamaLinearAttention(config, 0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    hidden_states = torch.randn(2, 31, config.hidden_size)
    angles = (torch.arange(31)[:, None] / 10.0 ** torch.arange(layer.head_dim // 2)).repeat(1, 2)[None]
    cos, sin = angles.cos(), angles.sin()
    expected = naive_layer(layer, hidden_states, cos, sin)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    expected_gradients = torch.autograd.grad(expected.square().sum(), parameters)
    for splits in ((31,), (4, 19, 8), (1,) * 31):
        cache = DynamicCache(config=config) if len(splits) > 1 else None
        pieces = zip(hidden_states.split(splits, 1), cos.split(splits, 1), sin.split(splits, 1), strict=True)
        parts = [layer(x, (c, s), past_key_values=cache)[0] for x, c, s in pieces]
        assert_close(torch.cat(parts, 1), expected, atol=2e-5, rtol=1e-4)
        if cache is None:
            gradients = torch.autograd.grad(parts[0].square().sum(), parameters)
            for name, gradient, wanted in zip(names, gradients, expected_gradients, strict=True):
                assert wanted.abs().max() > 0, name
                assert_close(gradient, wanted, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("switches", [HYBRID | {"linear_window": 6}, {"linear_use_rope": True}, {}])
@pytest.mark.parametrize("batch", ["packed", "padded"])
def test_pieces_of_a_text_change_nothing(switches, batch, monkeypatch):
    """Neither logits nor gradients, with packed documents or padding across the pieces."""
    model = tiny_model(**{"layer_types": [LINEAR] * 3, "linear_decay": True} | switches)
    ids = tokens(2, 50)
    options = {"position_ids": torch.cat([torch.arange(n) for n in (16, 3, 31)]).expand(2, -1)}
    if batch == "padded":
        options = {"attention_mask": (torch.arange(50) >= torch.tensor([[0], [11]])).long()}
    results = []
    for piece in (512, 8, 5):
        monkeypatch.setattr(linear_attention, "PIECE", piece)
        logits = model(ids, use_cache=False, **options).logits
        if batch == "padded":
            logits = logits[options["attention_mask"].bool()]
        results.append((logits, torch.autograd.grad(logits.square().mean(), list(model.parameters()))))
    for logits, gradients in results[1:]:
        assert_close(logits, results[0][0], atol=2e-5, rtol=1e-4)
        for gradient, expected in zip(gradients, results[0][1], strict=True):
            assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("rope", [{}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}])
def test_hybrid_is_llama_up_to_its_window(rope):
    """A Llama's weights in hybrid layers: the same logits until the window is full, others after."""
    rope = {"rope_parameters": rope} if rope else {}
    hybrid = tiny_model(**HYBRID, **rope)
    llama = tiny_model(**rope)
    assert isinstance(llama, LlamaForCausalLM)
    missing, unexpected = hybrid.load_state_dict(llama.state_dict(), strict=False)
    assert not unexpected
    assert all("feature_map" in name or "log_window_weight" in name for name in missing)
    for name, parameter in hybrid.named_parameters():
        if name.endswith("log_window_weight"):
            parameter.normal_()  # cancels within the window
    ids = tokens(2, 40)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    out, expected = (model(ids, attention_mask=mask).logits for model in (hybrid, llama))
    assert_close(out[1, :24], expected[1, :24], atol=1e-5, rtol=1e-5)
    assert_close(out[0, 7:31], expected[0, 7:31], atol=1e-5, rtol=1e-5)
    assert (out[1, 25:] - expected[1, 25:]).abs().max() > 1e-2
    cached = [
        hybrid(x, past_key_values=cache).logits
        for cache in [DynamicCache(config=hybrid.config)]
        for x in ids.split(1, 1)
    ]
    assert_close(torch.cat(cached, 1)[1, :24], expected[1, :24], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hybrid_withstands_large_scores():
    """Scores of thousands: softmax over the window is one token, and the past still has its weight."""
    (q_features, k_features, v), _ = operands(30, requires_grad=False)
    q, k = torch.randn(B, H, 30, D) * 100, torch.randn(B, K, 30, D) * 100
    out = naive_hybrid_attention(q, k, v.float(), q_features.float(), k_features.float(), 5, 1.0, torch.zeros(H))
    sums = window_sums(q, *(torch.nn.functional.pad(x, (0, 0, 5, 0)) for x in (k, v.float())), 1.0)
    assert out.isfinite().all()
    assert sums.isfinite().all()
    assert_close(sums[1, :, :10, -1], torch.ones(H, 10))


@torch.no_grad()
def test_hedgehog_starts_as_softmax_of_the_heads_themselves():
    model = tiny_model(**HYBRID)
    feature_map = model.model.layers[0].self_attn.q_feature_map
    x = torch.randn(1, 4, 3, 8)
    assert_close(feature_map(x), torch.cat([x.softmax(-1), (-x).softmax(-1)], -1))
    feature_map.weight[2] = 0
    assert_close(feature_map(x)[0, 2], torch.full((3, 16), 1 / 8))  # each head has its own
    assert not (feature_map(x)[0, 1] == 1 / 8).any()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_cache_is_constant_and_its_state_fp32(dtype):
    model = tiny_model(dtype, **HYBRID | {"linear_window": 5})
    cache = DynamicCache(config=model.config)
    for length in (2, 9, 1, 30):
        model(tokens(2, length), past_key_values=cache)
        layer = cache.layers[1]
        assert layer.recurrent_states[0].dtype == torch.float32
        assert layer.recurrent_states[0].shape == (2, 2, 16, 9)
        assert layer.conv_states[0].dtype == dtype
        assert layer.conv_states[0].shape == (2, 2, 5, 25)
