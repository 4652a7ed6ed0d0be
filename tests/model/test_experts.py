import pytest
import torch
from torch.testing import assert_close

from r1llama.model.experts import R1LlamaExperts, R1LlamaMoE, R1LlamaRouter
from r1llama.model.experts_cpu import cpu_experts
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
@pytest.mark.parametrize("implementation", ["r1llama", "grouped_mm", "batched_mm", "eager"])
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


def experts_and_inputs(dtype=torch.float32, T=23, E=5, K=2):
    """Experts of which the last gets no token."""
    torch.manual_seed(0)
    module = R1LlamaExperts(tiny_config(num_experts=E, num_experts_per_tok=K, moe_intermediate_size=12)).to(dtype)
    for p in module.parameters():
        p.data.normal_(std=0.3)
    x = torch.randn(T, 32, dtype=dtype, requires_grad=True)
    weights = torch.rand(T, K, requires_grad=True)
    ids = torch.rand(T, E - 1).topk(K, -1).indices
    return module, x, ids, weights


def expert_gradients(module, x, ids, weights, implementation):
    module.config._experts_implementation_internal = implementation
    output = module(x, ids, weights)
    target = torch.linspace(-1, 1, x.shape[1]).to(output.dtype)
    inputs = [p for p in (x, weights, *module.parameters()) if p.requires_grad]
    return output.detach(), *torch.autograd.grad((output * target).sum(), inputs)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("implementation", ["r1llama", "grouped_mm"])
def test_gradients_are_the_naive_twins(implementation, frozen):
    module, *inputs = experts_and_inputs()
    module.requires_grad_(not frozen)
    fast, naive = (expert_gradients(module, *inputs, name) for name in (implementation, "eager"))
    for ours, expected in zip(fast, naive, strict=True):
        assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_bf16_is_as_near_to_fp32_as_the_naive_twin():
    fp32 = expert_gradients(*experts_and_inputs(), "eager")
    errors = {}
    for name in ("r1llama", "eager"):
        bf16 = expert_gradients(*experts_and_inputs(torch.bfloat16), name)
        errors[name] = [(a - b).norm() / b.norm() for a, b in zip(bf16, fp32, strict=True)]
    for ours, naive in zip(errors["r1llama"], errors["eager"], strict=True):
        assert ours < max(1.5 * naive, 0.01)


def test_autocast_reaches_the_experts():
    fp32 = expert_gradients(*experts_and_inputs(), "r1llama")
    bf16 = expert_gradients(*experts_and_inputs(torch.bfloat16), "r1llama")
    module, *inputs = experts_and_inputs()
    with torch.autocast(module.gate_up_proj.device.type, dtype=torch.bfloat16):
        mixed = expert_gradients(module, *inputs, "r1llama")
        with torch.no_grad():  # decode: the weights stay fp32
            decoded = module(*(x[:2] for x in inputs))
    for ours, half, full in zip(mixed, bf16, fp32, strict=True):
        assert ours.dtype == torch.float32
        assert_close(ours, half.float(), atol=0.02 * full.abs().max().item(), rtol=0)
    assert_close(decoded, fp32[0][:2], atol=1e-5, rtol=1e-4)


def test_cpu_op_is_a_sound_operator():
    """Schema, fake tensors, autograd and AOT dispatch, by torch's own checks; gradients by finite differences."""
    module, x, ids, weights = (t.cpu() if torch.is_tensor(t) else t for t in experts_and_inputs(T=4, E=3))
    arguments = (x, ids, weights, *(p.cpu() for p in module.parameters()))
    torch.library.opcheck(cpu_experts, arguments)
    doubles = [a.detach().double().requires_grad_() if a.is_floating_point() else a for a in arguments]
    assert torch.autograd.gradcheck(lambda *a: cpu_experts(*a)[0], doubles)


def test_fast_backend_is_the_default():
    assert R1LlamaPreTrainedModel._can_set_experts_implementation()
    assert tiny_model(num_experts=4).config._experts_implementation == "r1llama"


@torch.no_grad()
def test_router_logits_are_returned():
    model = tiny_model(num_experts=4, first_k_dense_replace=1)
    out = model.model(tokens(2, 9), output_router_logits=True)
    assert [tuple(x.shape) for x in out.router_logits] == [(18, 4)] * 2
