"""Mixture of experts, as in DeepSeek-V3 (arXiv:2412.19437, section 2.1.2).

    s = sigmoid(x W_gate)                    scores, fp32
    ids = top-k of s + b                     b: the balancing bias; it chooses and never weighs
    y = shared(x) + scale * sum_k s[ids_k] / sum(s[ids]) * expert[ids_k](x)

Shapes: T tokens, E experts, K experts a token, D hidden, I width of an expert.
"""

import copy
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
        scores_TE = logits_TE.sigmoid() if config.scoring_func == "sigmoid" else logits_TE.softmax(-1)
        choice_TE = scores_TE + self.e_score_correction_bias
        if config.topk_group < config.n_group:
            choice_TE = self.limit_groups(choice_TE)
        ids_TK = choice_TE.topk(config.num_experts_per_tok, dim=-1, sorted=False).indices
        weights_TK = scores_TE.gather(1, ids_TK)
        if config.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        return logits_TE, weights_TK * config.routed_scaling_factor, ids_TK

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

    On a CPU our own op, at every number of tokens (`python -m benchmarks.architecture --only experts`). Elsewhere
    `grouped_mm` for prefill and training, and `batched_mm` for decode: it copies the weights of T * K experts, which
    pays while those are no more than the layer has, T * K <= E (transformers' own measurements; none of ours).
    None of them waits for the device, and each touches all experts' tensors in every backward pass.

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
    if x_TD.device.type == "cpu" and self.config.hidden_act == "silu":
        return cpu_experts(x_as_weights_TD, ids_TK, weights_TK, gate_up_proj, down_proj)[0].to(x_TD.dtype)
    experts = SimpleNamespace(
        **vars(self) | {"gate_up_proj": gate_up_proj, "down_proj": down_proj, "_apply_gate": self._apply_gate}
    )
    is_batched = is_decode and x_TD.device.type != "cpu"
    backend = batched_mm_experts_forward if is_batched else grouped_mm_experts_forward
    return backend(experts, x_as_weights_TD, ids_TK, weights_TK).to(x_TD.dtype)


ALL_EXPERTS_FUNCTIONS.register("r1llama", fastest_experts)


class R1LlamaMoE(nn.Module):
    """Routed and shared experts in the place of an MLP. Counts the tokens that each routed expert gets, see `load`."""

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
        self.is_counting = False
        self.token_mask: torch.Tensor | None = None

    def count_next_forward(self, token_mask: torch.Tensor | None) -> None:
        """Add the next forward to `load`, and that one alone: gradient checkpointing runs a block a second time.
        `token_mask` `(B, S)` is 0 where a token is padding; None counts all."""
        self.is_counting, self.token_mask = True, token_mask

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights_TK, ids_TK = self.gate(x_TD)
        if self.is_counting:
            self.is_counting = False
            self.add_to_load(ids_TK)
        output = self.experts(x_TD, ids_TK, weights_TK).view_as(hidden_states)
        if self.shared_experts is not None:
            output = output + self.shared_experts(hidden_states)
        return output

    @torch.no_grad()
    def add_to_load(self, ids_TK: torch.Tensor) -> None:
        if self.load is None:
            self.load = torch.zeros(self.experts.num_experts, device=ids_TK.device)
        ones = torch.ones_like(ids_TK, dtype=self.load.dtype)
        if self.token_mask is not None:
            ones = ones * self.token_mask.reshape(-1, 1)
        self.load.scatter_add_(0, ids_TK.reshape(-1), ones.reshape(-1))
