import pytest
import torch
from torch.testing import assert_close

from r1llama.model.experts import R1LlamaMoE, R1LlamaRouter
from r1llama.model.modeling import R1LlamaPreTrainedModel

from .conftest import tiny_config, tiny_model, tokens


def router(**switches):
    config = tiny_config(num_experts=8, num_experts_per_tok=3, **switches)
    module = R1LlamaRouter(config)
    torch.manual_seed(0)
    module.weight.data.normal_()
    return module


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_bias_chooses_and_never_weighs(scoring_func, norm_topk_prob):
    gate = router(scoring_func=scoring_func, norm_topk_prob=norm_topk_prob, routed_scaling_factor=1.7)
    x = torch.randn(50, 32)
    gate.e_score_correction_bias[5] = 100.0
    logits, weights, ids = gate(x)
    assert (ids == 5).any(-1).all()
    scores = logits.sigmoid() if scoring_func == "sigmoid" else logits.softmax(-1)
    expected = scores.gather(1, ids)
    if norm_topk_prob:
        expected = expected / expected.sum(-1, keepdim=True)
        assert_close(weights.sum(-1), torch.full((50,), 1.7))
    assert_close(weights, expected * 1.7)


def test_group_limit_is_kept():
    gate = router(n_group=4, topk_group=2)
    logits, _, ids = gate(torch.randn(200, 32))
    groups = ids // 2
    assert max(len(set(row.tolist())) for row in groups) <= 2
    ranks = logits.sigmoid().view(-1, 4, 2).sum(-1).topk(2).indices
    assert all(set(g.tolist()) <= set(r.tolist()) for g, r in zip(groups, ranks, strict=True))


def test_router_computes_in_fp32_under_autocast():
    gate = router()
    x = torch.randn(64, 32)
    expected = gate(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gate(x)[0], expected)


@pytest.mark.parametrize("experts", [1, 2, 5])
@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("T", [1, 37])
def test_every_backend_is_the_definition(experts, implementation, T):
    config = tiny_config(num_experts=experts, num_experts_per_tok=min(2, experts), n_shared_experts=1)
    torch.manual_seed(0)
    moe = R1LlamaMoE(config)
    for p in moe.parameters():
        p.data.normal_(std=0.3)
    config._experts_implementation_internal = implementation
    x = torch.randn(1, T, 32)
    _, weights, ids = moe.gate(x)
    expected = moe.shared_experts(x)[0].clone()
    for t in range(T):
        for w, e in zip(weights[t], ids[t], strict=True):
            gate, up = (moe.experts.gate_up_proj[e] @ x[0, t]).chunk(2)
            expected[t] += w * (moe.experts.down_proj[e] @ (moe.experts.act_fn(gate) * up))
    assert_close(moe(x)[0], expected, atol=1e-5, rtol=1e-4)


def test_fast_backend_is_the_default():
    assert R1LlamaPreTrainedModel._can_set_experts_implementation()
    assert tiny_model(num_experts=4).config._experts_implementation == "grouped_mm"


@torch.no_grad()
def test_router_logits_are_returned():
    model = tiny_model(num_experts=4, first_k_dense_replace=1)
    out = model.model(tokens(2, 9), output_router_logits=True)
    assert [tuple(x.shape) for x in out.router_logits] == [(18, 4)] * 2
