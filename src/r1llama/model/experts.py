"""Mixture of experts, as in DeepSeek-V3 (arXiv:2412.19437, section 2.1.2).

    s = sigmoid(x W_gate)                    scores, fp32
    ids = top-k of s + b                     b: the balancing bias; it chooses and never weighs
    y = shared(x) + scale * sum_k s[ids_k] / sum(s[ids]) * expert[ids_k](x)

Shapes: B batch, S tokens of a row, T = B * S, E experts, K experts a token, D hidden, I width of an expert.
"""

import copy
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.integrations import use_experts_implementation
from transformers.integrations.moe import (
    ALL_EXPERTS_FUNCTIONS,
    batched_mm_experts_forward,
    grouped_mm_experts_forward,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from .auxiliary_loss import attach_loss
from .experts_cpu import cpu_experts


class R1LlamaRouter(nn.Module):
    """Chooses K of E experts for each token. The names are DeepSeek-V3's."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.e_score_correction_bias = nn.Buffer(torch.zeros(config.num_experts, dtype=torch.float32))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Router logits `(T, E)`, weights `(T, K)` and expert ids `(T, K)` of `hidden_states` `(..., D)`."""
        config = self.config
        x_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        device = self.e_score_correction_bias.device.type  # not of x, a proxy while vLLM traces this
        with torch.autocast(device, enabled=False):  # a rounded logit sends the token elsewhere
            logits_TE = F.linear(x_TD.float(), self.weight.float())
        scores_TE = self.score(logits_TE)
        choice_TE = scores_TE + self.e_score_correction_bias
        if config.topk_group < config.n_group:
            choice_TE = self.limit_groups(choice_TE)
        ids_TK = choice_TE.topk(config.num_experts_per_tok, dim=-1, sorted=False).indices
        return logits_TE, self.weigh(scores_TE, ids_TK), ids_TK

    def score(self, logits_TE: torch.Tensor) -> torch.Tensor:
        return logits_TE.sigmoid() if self.config.scoring_func == "sigmoid" else logits_TE.softmax(-1)

    def weigh(self, scores_TE: torch.Tensor, ids_TK: torch.Tensor) -> torch.Tensor:
        """The weights `(T, K)` of chosen experts."""
        weights_TK = scores_TE.gather(1, ids_TK)
        if self.config.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        return weights_TK * self.config.routed_scaling_factor

    def limit_groups(self, choice_TE: torch.Tensor) -> torch.Tensor:
        """Rule out the experts of all but the `topk_group` groups with the highest sum of two best scores."""
        groups_TGE = choice_TE.unflatten(-1, (self.config.n_group, -1))
        rank_TG = groups_TGE.topk(2, dim=-1).values.sum(-1)
        kept_TG = torch.zeros_like(rank_TG, dtype=torch.bool).scatter_(
            1, rank_TG.topk(self.config.topk_group, dim=-1, sorted=False).indices, True
        )
        return groups_TGE.masked_fill(~kept_TG[..., None], float("-inf")).flatten(1)


@use_experts_implementation
class R1LlamaExperts(nn.Module):
    """E SwiGLU MLPs in two tensors. The fast paths come through transformers' experts interface: "r1llama" below, the
    default, "grouped_mm", "batched_mm", ...; `model.set_experts_implementation` chooses. This forward is their naive
    twin, "eager"."""

    def __init__(self, config):
        super().__init__()
        self.num_experts = config.num_experts
        I, D = config.moe_intermediate_size, config.hidden_size  # noqa: E741
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * I, D))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, D, I))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """Sum over each token's K experts of weight times MLP, `(T, D)`."""
        output_TD = torch.zeros_like(x_TD)
        # Not W[e]: every such index would write a zero gradient of the whole tensor
        for expert, (gate_up, down) in enumerate(
            zip(self.gate_up_proj.unbind(0), self.down_proj.unbind(0), strict=True)
        ):
            tokens, slots = torch.where(ids_TK == expert)
            gate, up = F.linear(x_TD[tokens], gate_up).chunk(2, dim=-1)
            y = F.linear(self.act_fn(gate) * up, down) * weights_TK[tokens, slots, None]
            output_TD = output_TD.index_add(0, tokens, y.to(output_TD.dtype))
        return output_TD


def fastest_experts(
    self: R1LlamaExperts, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
) -> torch.Tensor:
    """The backend "r1llama", the default: what was measured to be fastest.

    On a CPU our own op for training, and `grouped_mm` without gradients, where an op of ours only adds its overhead
    (`python -m benchmarks.architecture --only experts`). Elsewhere `grouped_mm` for prefill and training, and
    `batched_mm` for decode: it copies the weights of T * K experts, which pays while those are no more than the layer
    has, T * K <= E (transformers' own measurements; none of ours). None of them waits for the device, and each touches
    all experts' tensors in every backward pass.

    Autocast reaches the experts here, as it reaches any linear layer; in transformers' backends it does not, and
    mixed precision would multiply in fp32. While decoding the weights stay as they are: to cast all experts for a few
    tokens costs more than it saves.
    """
    is_decode = not torch.is_grad_enabled() and ids_TK.numel() <= self.num_experts
    gate_up_proj, down_proj = self.gate_up_proj, self.down_proj
    if torch.is_autocast_enabled(x_TD.device.type) and not is_decode:
        dtype = torch.get_autocast_dtype(x_TD.device.type)
        gate_up_proj, down_proj = gate_up_proj.to(dtype), down_proj.to(dtype)
    x_as_weights_TD = x_TD.to(gate_up_proj.dtype)
    if x_TD.device.type == "cpu" and torch.is_grad_enabled() and self.config.hidden_act == "silu":
        return cpu_experts(x_as_weights_TD, ids_TK, weights_TK, gate_up_proj, down_proj)[0].to(x_TD.dtype)
    experts = self
    if gate_up_proj is not self.gate_up_proj:
        experts = SimpleNamespace(
            **vars(self) | {"gate_up_proj": gate_up_proj, "down_proj": down_proj, "_apply_gate": self._apply_gate}
        )
    is_batched = is_decode and x_TD.device.type != "cpu"
    backend = batched_mm_experts_forward if is_batched else grouped_mm_experts_forward
    return backend(experts, x_as_weights_TD, ids_TK, weights_TK).to(x_TD.dtype)


ALL_EXPERTS_FUNCTIONS.register("r1llama", fastest_experts)


@dataclass
class RoutedForward:
    """What one forward of the model tells one block of experts, and what the block tells back.

    It travels with the call of the layer, so that gradient checkpointing recomputes with what the forward was told,
    whatever came in between.

    Args:
        token_mask: `(B, S)`, 0 where a token is padding; None: no padding.
        rows: `(B, S)`, where each token is among the T that the block sees, if these are not simply B x S
            (`shared_prompts`).
        is_training: Count the load and attach the losses of the router.
        loss_scale: See `auxiliary_loss.attach_loss`.
        replayed_ids: `(B, S, K)`, the experts to use; a token with a negative id chooses for itself.

    Attributes:
        is_done: What follows is recomputation.
        ids: `(B, S, K)`, the experts used.
        losses: Detached values by name, without their coefficients.
    """

    token_mask: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    is_training: bool = False
    loss_scale: float = 1.0
    replayed_ids: torch.Tensor | None = None
    is_done: bool = False
    ids: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] = field(default_factory=dict)


class R1LlamaMoE(nn.Module):
    """Routed and shared experts in the place of an MLP. Counts the tokens that each routed expert gets, see `load`."""

    _z3_leaf = True  # DeepSpeed ZeRO-3 gathers the block as one, however a rank's tokens are routed

    def __init__(self, config):
        super().__init__()
        self.gate = R1LlamaRouter(config)
        self.experts = R1LlamaExperts(config)
        self.shared_experts = None
        if config.n_shared_experts:
            shared = copy.copy(config)
            shared.intermediate_size = config.moe_intermediate_size * config.n_shared_experts
            self.shared_experts = LlamaMLP(shared)
        # Plain attributes, no buffers: a step's counts are no state of the model.
        self.load: torch.Tensor | None = None  # (E,) tokens since the last update of the router bias
        self.routed: RoutedForward | None = None  # set by the decoder layer for each forward

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits_TE, weights_TK, ids_TK = self.gate(x_TD)
        if self.routed is not None:
            weights_TK, ids_TK = self.follow(self.routed, logits_TE, weights_TK, ids_TK, hidden_states.shape[:-1])
        output = self.experts(x_TD, ids_TK, weights_TK).view_as(hidden_states)
        if self.shared_experts is not None:
            output = output + self.shared_experts(hidden_states)
        return output

    def follow(self, routed: RoutedForward, logits_TE, weights_TK, ids_TK, shape_BS):
        """Do what this forward asks for; the weights and ids to use."""

        def by_sequence(x_TX):
            return x_TX.unflatten(0, shape_BS) if routed.rows is None else x_TX[routed.rows]

        if routed.replayed_ids is not None:
            replayed_TK = routed.replayed_ids.flatten(0, 1).to(ids_TK.dtype)
            if routed.rows is not None:
                replayed_TK = torch.empty_like(ids_TK).index_put((routed.rows.flatten(),), replayed_TK)
            ids_TK = torch.where((replayed_TK < 0).any(-1, keepdim=True), ids_TK, replayed_TK)
            weights_TK = self.gate.weigh(self.gate.score(logits_TE), ids_TK)
        if routed.is_training:
            ids_BSK, logits_BSE = by_sequence(ids_TK), by_sequence(logits_TE)
            mask_BS = (
                logits_BSE.new_ones(ids_BSK.shape[:2]) if routed.token_mask is None else routed.token_mask.float()
            )
            config, losses = self.gate.config, {}
            if config.aux_loss_alpha:
                scores_BSE = self.gate.score(logits_BSE)
                loss = balance_loss(scores_BSE / scores_BSE.sum(-1, keepdim=True), ids_BSK, mask_BS)
                losses["balance"] = config.aux_loss_alpha, loss
            if config.router_z_loss_coef:
                losses["z"] = config.router_z_loss_coef, z_loss(logits_BSE, mask_BS)
            for coef, loss in losses.values():
                weights_TK = attach_loss(weights_TK, coef * loss, routed.loss_scale)
            if not routed.is_done:
                self.add_to_load(ids_BSK, mask_BS)
                routed.losses = {name: loss.detach() for name, (_, loss) in losses.items()}
        if not routed.is_done:
            routed.is_done, routed.ids = True, by_sequence(ids_TK)
        return weights_TK, ids_TK

    @torch.no_grad()
    def add_to_load(self, ids_BSK: torch.Tensor, mask_BS: torch.Tensor) -> None:
        if self.load is None:
            self.load = torch.zeros(self.gate.config.num_experts, device=ids_BSK.device)
        self.load.scatter_add_(0, ids_BSK.flatten(), mask_BS[..., None].expand(ids_BSK.shape).flatten())


def balance_loss(shares_BSE: torch.Tensor, ids_BSK: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """Sequence-wise balance loss of DeepSeek-V3 (arXiv:2412.19437, section 2.1.2), a scalar; 1 is perfect balance.

        mean over sequences of sum_i f_i P_i

    f_i is E / K times the share of the sequence's tokens that used expert i, P_i the mean of its normalised scores.
    Padding (mask 0) and sequences of nothing else are left out. A row of packed documents counts as one sequence.
    """
    E, K = shares_BSE.shape[-1], ids_BSK.shape[-1]
    length_B1 = mask_BS.sum(-1, keepdim=True).clamp(min=1)
    used_BE = shares_BSE.new_zeros(shares_BSE.shape[0], E).scatter_add_(
        1, ids_BSK.flatten(1), mask_BS[..., None].expand(ids_BSK.shape).flatten(1)
    )
    mean_share_BE = (shares_BSE * mask_BS[..., None]).sum(1) / length_B1
    loss_B = (used_BE * (E / K) / length_B1 * mean_share_BE).sum(-1)
    return loss_B.sum() / mask_BS.any(-1).sum().clamp(min=1)


def z_loss(logits_BSE: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """Router z-loss of ST-MoE (arXiv:2202.08906, section 3.2), a scalar: mean over the tokens of logsumexp squared."""
    return (logits_BSE.logsumexp(-1).square() * mask_BS).sum() / mask_BS.sum().clamp(min=1)
