"""Routing replay: train with the experts that the rollout chose (R3, arXiv:2510.11370; R2, arXiv:2507.18071).

Between rollout and update, another order of summation or another engine changes a router's choice for some tokens, and
with it the token's probability by far more than rounding does. Replayed, every router uses the ids it is given. The
weights of these experts are computed from the current scores, so that the gradient still reaches the router.

    with record_routing(model) as record:
        tokens = model.generate(prompts, attention_mask=mask)
    with replay_routing(model, record.ids()):
        loss = model(tokens[:, :-1], ...)         # the last token was never read
    loss.backward()                               # gradient checkpointing recomputes with the same ids

Shapes: L layers with experts, B batch, S tokens, K experts a token.
"""

from contextlib import contextmanager

import torch

from .modeling import R1LlamaModel


class RoutingRecord:
    """The ids of each forward, in order."""

    def __init__(self, parts: list[torch.Tensor]):
        self.parts = parts

    def ids(self) -> torch.Tensor:
        """`(L, B, S, K)`, the tokens of all forwards side by side: a prefill and its decode steps, as in generation.

        Padding has ids too, of no meaning. Beam search and drafts do not fit: they reorder or drop what was read.
        """
        if not self.parts:
            raise ValueError("no forward ran inside record_routing: call the model within the `with` block")
        return torch.cat(self.parts, dim=2)


@contextmanager
def record_routing(model: torch.nn.Module):
    """Record which experts every token uses, in all forwards of `model` (also inside PEFT or DDP) meanwhile.

    Yields: a `RoutingRecord`.
    """
    backbone = _backbone(model)
    if backbone.recorded_routing is not None:
        raise RuntimeError("record_routing is already active for this model: leave it first")
    backbone.recorded_routing = []
    try:
        yield RoutingRecord(backbone.recorded_routing)
    finally:
        backbone.recorded_routing = None


@contextmanager
def replay_routing(model: torch.nn.Module, ids: torch.Tensor):
    """Let every router of `model` use the given experts in the forwards meanwhile.

    Args:
        model: also inside PEFT or DDP.
        ids: `(L, B, S, K)`, integers; B and S are those of the forward. A token of which an id is negative (padding,
            or a prompt that another engine read) chooses for itself.
    """
    backbone = _backbone(model)
    config = backbone.config
    if backbone.replayed_routing is not None:
        raise RuntimeError("replay_routing is already active for this model: leave it first")
    if ids.dim() != 4 or ids.shape[-1] != config.num_experts_per_tok or ids.is_floating_point():
        raise ValueError(
            f"replay_routing was given {ids.dtype} of shape {tuple(ids.shape)}: give integers of shape (layers with "
            f"experts, B, S, {config.num_experts_per_tok}), as `RoutingRecord.ids()` returns"
        )
    if ids.numel() and ids.max() >= config.num_experts:
        raise ValueError(
            f"replay_routing was given expert {ids.max().item()}, but num_experts is {config.num_experts}: these ids "
            "are another model's"
        )
    backbone.replayed_routing = ids
    try:
        yield
    finally:
        backbone.replayed_routing = None


def _backbone(model: torch.nn.Module) -> R1LlamaModel:
    for module in model.modules():
        if isinstance(module, R1LlamaModel) and module.config.num_experts:
            return module
    raise ValueError(f"{type(model).__name__} holds no R1Llama model with experts: there is no routing to follow")
