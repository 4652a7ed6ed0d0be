"""The experts on a CPU: tokens sorted by expert, each expert's rows multiplied, each token's rows added up again.

A custom op, so that torch.compile sees one node. Of its intermediate results it keeps only the gate and up products,
which is a quarter of what the same steps keep under autograd; the gradients of the experts are written straight into
their place in one tensor. A loop over the experts costs nothing here: on a CPU there is no device to wait for, and
`F.grouped_mm` is such a loop too.

Shapes: T tokens, K experts a token, S = T * K rows sorted by expert, E experts, D hidden, I width of an expert.
"""

import torch
from torch.nn import functional as F


def sort_by_expert(ids_TK: torch.Tensor, num_experts: int):
    """The order `(S,)` that sorts the flat ids, each token's rows in it `(T, K)`, and the rows of each expert."""
    flat_S = ids_TK.reshape(-1)
    order_S = flat_S.argsort(stable=True)
    rows_S = torch.empty_like(order_S)
    rows_S[order_S] = torch.arange(order_S.numel(), device=order_S.device)
    return order_S, rows_S.view_as(ids_TK), torch.bincount(flat_S, minlength=num_experts).tolist()


def each_expert(a_SX: torch.Tensor, w_EXY: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """`a[rows of e] @ w[e]` for every expert, `(S, Y)`."""
    out_SY = a_SX.new_empty(a_SX.shape[0], w_EXY.shape[2])
    end = 0
    for expert, count in enumerate(counts):
        if count:
            start, end = end, end + count
            torch.mm(a_SX[start:end], w_EXY[expert], out=out_SY[start:end])
    return out_SY


def each_expert_transposed(a_SX: torch.Tensor, b_SY: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """`a[rows of e].T @ b[rows of e]` for every expert, `(E, X, Y)`; 0 for an expert without rows."""
    out_EXY = a_SX.new_empty(len(counts), a_SX.shape[1], b_SY.shape[1])
    end = 0
    for expert, count in enumerate(counts):
        start, end = end, end + count
        torch.mm(a_SX[start:end].t(), b_SY[start:end], out=out_EXY[expert])
    return out_EXY


@torch.library.custom_op("r1llama::experts", mutates_args=())
def cpu_experts(
    x_TD: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    gate_up_proj: torch.Tensor,
    down_proj: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over each token's K experts of weight times SwiGLU MLP, `(T, D)`, and what the backward pass needs of it."""
    order_S, rows_TK, counts = sort_by_expert(ids_TK, gate_up_proj.shape[0])
    x_SD = x_TD.index_select(0, order_S // ids_TK.shape[1])
    gate_up_S = each_expert(x_SD, gate_up_proj.transpose(1, 2), counts)
    gate_SI, up_SI = gate_up_S.chunk(2, dim=-1)
    hidden_SI = F.silu(gate_SI).mul_(up_SI).mul_(weights_TK.reshape(-1)[order_S, None])
    y_SD = each_expert(hidden_SI, down_proj.transpose(1, 2), counts)
    return F.embedding_bag(rows_TK, y_SD, mode="sum"), gate_up_S


@cpu_experts.register_fake
def _(x_TD, ids_TK, weights_TK, gate_up_proj, down_proj):
    return torch.empty_like(x_TD), x_TD.new_empty(ids_TK.numel(), gate_up_proj.shape[1])


@torch.library.custom_op("r1llama::experts_backward", mutates_args=())
def cpu_experts_backward(
    gradient_TD: torch.Tensor,
    x_TD: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    gate_up_proj: torch.Tensor,
    down_proj: torch.Tensor,
    gate_up_S: torch.Tensor,
    is_frozen: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, the weights and, unless `is_frozen`, the two projections."""
    order_S, rows_TK, counts = sort_by_expert(ids_TK, gate_up_proj.shape[0])
    tokens_S = order_S // ids_TK.shape[1]
    weights_S1 = weights_TK.reshape(-1)[order_S, None]
    gate_SI, up_SI = gate_up_S.chunk(2, dim=-1)
    act_SI = F.silu(gate_SI)
    hidden_SI = act_SI * up_SI

    dy_SD = gradient_TD.index_select(0, tokens_S)
    dhidden_SI = each_expert(dy_SD, down_proj, counts)
    dweights_TK = (dhidden_SI * hidden_SI).sum(-1, dtype=weights_TK.dtype)[rows_TK]
    dhidden_SI.mul_(weights_S1)
    dgate_up_S = torch.empty_like(gate_up_S)
    dgate_SI, dup_SI = dgate_up_S.chunk(2, dim=-1)
    torch.mul(dhidden_SI, act_SI, out=dup_SI)
    torch.ops.aten.silu_backward.grad_input(dhidden_SI.mul_(up_SI), gate_SI, grad_input=dgate_SI)
    dx_TD = F.embedding_bag(rows_TK, each_expert(dgate_up_S, gate_up_proj, counts), mode="sum")
    if is_frozen:
        return dx_TD, dweights_TK, x_TD.new_empty(0), x_TD.new_empty(0)
    ddown_proj = each_expert_transposed(dy_SD, hidden_SI.mul_(weights_S1), counts)
    dgate_up_proj = each_expert_transposed(dgate_up_S, x_TD.index_select(0, tokens_S), counts)
    return dx_TD, dweights_TK, dgate_up_proj, ddown_proj


@cpu_experts_backward.register_fake
def _(gradient_TD, x_TD, ids_TK, weights_TK, gate_up_proj, down_proj, gate_up_S, is_frozen):
    if is_frozen:
        projections = x_TD.new_empty(0), x_TD.new_empty(0)
    else:
        projections = torch.empty_like(gate_up_proj), torch.empty_like(down_proj)
    return torch.empty_like(x_TD), torch.empty_like(weights_TK), *projections


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for it


def _backward(ctx, gradient_TD, _):
    if gradient_TD is None:
        return (None,) * 5
    is_frozen = not any(ctx.needs_input_grad[3:])
    dx, dweights, dgate_up, ddown = cpu_experts_backward(gradient_TD.contiguous(), *ctx.saved_tensors, is_frozen)
    return dx, None, dweights, *((None, None) if is_frozen else (dgate_up, ddown))


cpu_experts.register_autograd(_backward, setup_context=_save)
