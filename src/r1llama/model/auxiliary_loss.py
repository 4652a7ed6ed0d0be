"""Losses beside the language loss (balance of the experts, router z-loss, multi-token prediction).

They reach the gradient through the backbone, not through the number that a trainer calls the loss: the trainers of TRL
never run `ForCausalLM.forward`, and the language loss stays readable. Attached to a tensor that the backward pass
visits anyway, they work in any trainer, with either kind of gradient checkpointing, and under DDP, ZeRO-3 and FSDP.
"""

import torch


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, loss, scale):
        ctx.scale = scale
        ctx.save_for_backward(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        (loss,) = ctx.saved_tensors
        return gradient, torch.full_like(loss, ctx.scale), None


def attach_loss(x: torch.Tensor, loss: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """`x`, unchanged; a backward pass through it also adds the gradient of `scale * loss`.

    Args:
        x: any tensor that the language loss depends on.
        loss: a scalar.
        scale: 1 / the number of micro-batches of an optimizer step, because this loss is a mean over each of them.
    """
    return _Attach.apply(x, loss, scale)
