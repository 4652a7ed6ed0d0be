"""Loss-free balancing of the experts: a bias on the router's choice, moved against the load (arXiv:2408.15664).

Once per optimizer step, for each layer with experts:

    b += rate * (d - mean(d)),    d = sign(mean(load) - load)

`load` counts the tokens of every forward since the last step, over all ranks; padding and recomputation are not
counted. Subtracting the mean keeps the biases from drifting together, and balances better than the bare sign.

`r1llama.training.RouterBalancing` calls this from any transformers or TRL trainer.
"""

import math

import torch
from torch import distributed as dist

from .experts import R1LlamaMoE


def moe_blocks(model: torch.nn.Module) -> list[R1LlamaMoE]:
    """The expert layers of a model, first to last, also inside PEFT, DDP or DeepSpeed wrappers."""
    return [module for module in model.modules() if isinstance(module, R1LlamaMoE)]


@torch.no_grad()
def update_router_bias(model: torch.nn.Module, rate: float | None = None) -> dict[str, float]:
    """Move every router's bias by one step and start to count afresh. Call it on all ranks.

    Args:
        model: holds the blocks.
        rate: step of the bias; `config.router_bias_update_rate` by default, 0 only measures.

    Returns: what the loads were, `{}` if nothing was counted:
        `router/max_vio`: (max load - mean load) / mean load, averaged over the layers; 0 is perfect balance.
        `router/max_vio_worst`: the same of the worst layer, where a collapse shows first.
        `router/load_entropy`: entropy of the load over ln E, averaged over the layers; 1 is perfect balance.
        `router/dead_experts`: experts that no token reached, summed over the layers.
    """
    blocks = [block for block in moe_blocks(model) if block.load is not None]
    if not blocks:
        return {}
    load_LE = torch.stack([block.load for block in blocks])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(load_LE)
    for block in blocks:
        block.load = None
    if not load_LE.any():
        return {}

    mean_L1 = load_LE.mean(-1, keepdim=True)
    for block, direction_E in zip(blocks, torch.sign(mean_L1 - load_LE), strict=True):
        router = block.gate
        step = router.config.router_bias_update_rate if rate is None else rate
        if router.e_score_correction_bias.dtype != torch.float32:  # `model.bfloat16()` reaches buffers too
            router.e_score_correction_bias = router.e_score_correction_bias.float()
        router.e_score_correction_bias.add_(step * (direction_E - direction_E.mean()))

    share_LE = load_LE / load_LE.sum(-1, keepdim=True)
    max_vio_L = load_LE.amax(-1) / mean_L1.squeeze(-1) - 1
    entropy_L = torch.special.entr(share_LE).sum(-1) / math.log(max(load_LE.shape[-1], 2))
    return {
        "router/max_vio": max_vio_L.mean().item(),
        "router/max_vio_worst": max_vio_L.max().item(),
        "router/load_entropy": entropy_L.mean().item(),
        "router/dead_experts": float((load_LE == 0).sum().item()),
    }
