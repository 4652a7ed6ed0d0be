"""Multi-head latent attention (MLA), as in DeepSeek-V3 (arXiv:2412.19437, section 2.1.1).

One latent and one rotary key a token serve all heads, and they alone are cached:

    c = norm(x W_DKV)  (r channels)        k_pe = RoPE(x W_KR)  (dr channels)

Expanded (training, long prefill): every head's keys and values are made from the latent.

    k_h = [c W_UK^h ; k_pe]    v_h = c W_UV^h    o_h = softmax(q_h k_h^T scale) v_h

Absorbed (decode): the same products in another order, so that the cache is read as it is, never expanded.

    q~_h = [q_h^nope W_UK^h^T ; q_h^pe]    s = q~_h [c ; k_pe]^T scale    o_h = (softmax(s) c) W_UV^h

That is attention with one head of keys, [c ; k_pe], whose values are the keys again: the last dr channels
of its output are not used. What it costs and saves is counted in `is_cheaper_absorbed`.

Shapes: B batch, H heads, S new tokens, T cached and new tokens, r kv_lora_rank, dn / dr / dv the head dims.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deepseek_v2.modeling_deepseek_v2 import yarn_apply_mscale
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb, eager_attention_forward

from .shared_prompts import PromptCache

FLASH = ("flash_attention_2", "flash_attention_3")


class R1LlamaLatentAttention(nn.Module):
    """Names and layout of the weights are DeepSeek-V3's, so that its checkpoints load."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.num_key_value_groups = 1  # once expanded, every head has its own key
        self.kv_lora_rank = config.kv_lora_rank
        self.q_lora_rank = config.q_lora_rank
        self.qk_nope_head_dim = config.qk_nope_head_dim
        self.qk_rope_head_dim = config.qk_rope_head_dim
        self.qk_head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
        self.v_head_dim = config.v_head_dim
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.scaling = yarn_apply_mscale(config.rope_parameters, self.qk_head_dim**-0.5)

        hidden_size, bias = config.hidden_size, config.attention_bias
        if self.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden_size, self.num_heads * self.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden_size, self.q_lora_rank, bias=bias)
            self.q_a_layernorm = LlamaRMSNorm(self.q_lora_rank)
            self.q_b_proj = nn.Linear(self.q_lora_rank, self.num_heads * self.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden_size, self.kv_lora_rank + self.qk_rope_head_dim, bias=bias)
        self.kv_a_layernorm = LlamaRMSNorm(self.kv_lora_rank)
        self.kv_b_proj = nn.Linear(
            self.kv_lora_rank, self.num_heads * (self.qk_nope_head_dim + self.v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(self.num_heads * self.v_head_dim, hidden_size, bias=bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ):
        """
        Args:
            hidden_states: `(B, S, hidden)`.
            position_embeddings: cos and sin, each `(B, S, dr)`.
            attention_mask: as the chosen attention function takes it; None is causal.

        Returns: `(B, S, hidden)` and the attention weights `(B, H, S, T)`, or None where they are not made.
        """
        B, S = hidden_states.shape[:-1]
        if self.q_lora_rank is None:
            query = self.q_proj(hidden_states)
        else:
            query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
        query = query.view(B, S, -1, self.qk_head_dim).transpose(1, 2)
        q_nope, q_pe = query.split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)

        compressed = self.kv_a_proj_with_mqa(hidden_states)
        latent, k_pe = compressed.split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
        latent = self.kv_a_layernorm(latent).unsqueeze(1)  # (B, 1, S, r): one head, which every cache class takes
        k_pe = k_pe.unsqueeze(1)
        rotate = apply_rotary_pos_emb_interleave if self.config.rope_interleave else apply_rotary_pos_emb
        cos, sin = position_embeddings  # unpacked by name: vLLM traces this function
        q_pe, k_pe = rotate(q_pe, k_pe, cos, sin)

        is_shared = isinstance(past_key_values, PromptCache)  # keeps keys and values of the prompts expanded
        joint = None
        if past_key_values is not None and not is_shared:
            latent, k_pe = past_key_values.update(latent, k_pe, self.layer_idx)
            joint = getattr(past_key_values.layers[self.layer_idx], "joint", None)
        if self.is_absorbed(S, latent.shape[2]):
            if is_shared:
                latent, k_pe = past_key_values.update(latent, k_pe, self.layer_idx)
            joint = torch.cat([latent, k_pe], dim=-1) if joint is None else joint
            return self.o_proj(self.absorbed_attention(q_nope, q_pe, joint, attention_mask)), None

        key, value = self.expand_kv(latent, k_pe)
        if is_shared:
            key, value = past_key_values.update(key, value, self.layer_idx)
        # The fused kernels want one head dim: without it sdpa makes the S x T scores in memory
        is_padded = self.config._attn_implementation in ("sdpa", *FLASH) and self.qk_head_dim > self.v_head_dim
        if is_padded:
            value = F.pad(value, (0, self.qk_head_dim - self.v_head_dim))
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self,
            torch.cat([q_nope, q_pe], dim=-1),
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        if is_padded:
            output = output[..., : self.v_head_dim]
        return self.o_proj(output.reshape(B, S, -1)), weights

    def expand_kv(self, latent: torch.Tensor, k_pe: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys `(B, H, T, dn + dr)` and values `(B, H, T, dv)` of latents `(B, 1, T, r)` and keys `(B, 1, T, dr)`."""
        expanded = self.kv_b_proj(latent.squeeze(1)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k_nope, value = expanded.split([self.qk_nope_head_dim, self.v_head_dim], dim=-1)
        return torch.cat([k_nope, k_pe.expand(-1, self.num_heads, -1, -1)], dim=-1), value

    def is_absorbed(self, S: int, T: int) -> bool:
        """Whether absorbing costs fewer multiplications than expanding, and the attention function is one for it."""
        implementation = self.config._attn_implementation
        if implementation != "sdpa" and not (implementation in FLASH and S == 1):
            return False
        return self.is_cheaper_absorbed(S, T)

    def is_cheaper_absorbed(self, S: int, T: int) -> bool:
        """For one head, expanding takes `T r (dn + dv)` to make keys and values and `S T (dn + dr + dv)` to use them;
        absorbing takes `S r (dn + dv)` for queries and outputs and `S T (2r + dr)` in between. A rank of less than
        half of dn + dv is always absorbed, also in training.
        """
        r, expanded_dim = self.kv_lora_rank, self.qk_nope_head_dim + self.v_head_dim
        return S * T * (2 * r - expanded_dim) < r * expanded_dim * (T - S)

    def absorbed_attention(self, q_nope, q_pe, joint, attention_mask):
        """Attention over the latents as they are.

        Args:
            q_nope: `(B, H, S, dn)`.
            q_pe: `(B, H, S, dr)`, rotated.
            joint: latents and rotary keys, `(B, 1, T, r + dr)`.
            attention_mask: as sdpa takes it, or `(B, T)`; None is causal.

        Returns: `(B, S, H * dv)`.
        """
        S = q_nope.shape[2]
        up_k, up_v = self.up_projections().split([self.qk_nope_head_dim, self.v_head_dim], dim=1)
        query = torch.cat([torch.einsum("bhsd,hdr->bhsr", q_nope, up_k), q_pe], dim=-1)
        if attention_mask is not None and attention_mask.dim() == 2:  # FlashAttention's
            attention_mask = attention_mask[:, None, None].bool()
        if S == 1:  # heads as queries: the latents are read once, not once a head
            query = query.transpose(1, 2)
        else:
            joint = joint.expand(-1, self.num_heads, -1, -1)
        output = F.scaled_dot_product_attention(
            query,
            joint.to(query.dtype),
            joint.to(query.dtype),
            attn_mask=attention_mask,
            dropout_p=self.attention_dropout if self.training else 0.0,
            is_causal=attention_mask is None and S > 1,
            scale=self.scaling,
        )[..., : self.kv_lora_rank]
        if S == 1:
            output = output.transpose(1, 2)
        return torch.einsum("bhsr,hvr->bshv", output, up_v).flatten(2)

    def up_projections(self) -> torch.Tensor:
        """`kv_b_proj` as `(H, dn + dv, r)`, adapters and quantisation included."""
        projection = self.kv_b_proj
        if type(projection) is nn.Linear and projection.weight.dim() == 2:
            weight = projection.weight
        else:  # a LoRA or 4-bit layer, or one that ZeRO-3 gathers for the length of its call: ask the layer itself
            norm = self.kv_a_layernorm.weight
            weight = projection(torch.eye(self.kv_lora_rank, device=norm.device, dtype=norm.dtype)).mT
        return weight.unflatten(0, (self.num_heads, -1))
