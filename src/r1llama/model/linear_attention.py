"""Linear attention: softmax replaced by a kernel phi(q).phi(k), so that the past fits in one small matrix.

The sums and their naive, chunked and recurrent forms are in `linear_functions`; here is the layer around them, with
the choices that a config makes:

    linear_feature_map   phi: elu(x) + 1, relu(x), or learned: [softmax(W x), softmax(-W x)]
    linear_use_rope      phi(q) and phi(k) are rotated in the numerator, and not in the denominator
    linear_decay         a token of the past fades, at a fixed rate for each key head
    linear_window        softmax attention, with Llama's positions, over the last tokens; linear over those before

The cache is constant in size: the state, and under a window its keys and values. The state is fp32 whatever the
model's dtype: a bf16 sum stops growing after a few hundred tokens.

Shapes: B batch, H heads, K key heads, S new tokens, D head dim, W window.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.models.deepseek_v2.modeling_deepseek_v2 import yarn_apply_mscale
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from .linear_functions import linear_sums, normalise, window_sums

PIECE = 512  # tokens at a time: what is worked on stays in a CPU's cache


def elu_feature_map(x):
    if torch.compiler.is_compiling():  # torch 2.13 promises the compiler wrong strides for elu's gradient
        return x.clamp_max(0).exp() + x.relu()
    return F.elu(x).add_(1)


FEATURE_MAPS = {"elu": elu_feature_map, "relu": F.relu}


class HedgehogFeatureMap(nn.Module):
    """phi(x) = [softmax(W x), softmax(-W x)] with a learned W for each head, the identity at first (arXiv:2402.04347).
    `(B, heads, S, D)` to `(B, heads, S, 2 D)`, in fp32."""

    def __init__(self, num_heads, head_dim):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(head_dim).repeat(num_heads, 1, 1))

    def forward(self, x):
        x = x @ self.weight.mT.to(x.dtype)
        return torch.cat([x.softmax(-1), (-x).softmax(-1)], dim=-1)


class R1LlamaLinearAttention(LlamaAttention):
    """Llama's projections around linear attention; a Llama layer's weights load unchanged."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        if config.linear_feature_map == "hedgehog":
            self.q_feature_map = HedgehogFeatureMap(config.num_attention_heads, self.head_dim)
            self.k_feature_map = HedgehogFeatureMap(config.num_key_value_heads, self.head_dim)
        else:
            self.q_feature_map = self.k_feature_map = FEATURE_MAPS[config.linear_feature_map]
        self.window = config.linear_window
        if self.window is not None:
            self.scaling = yarn_apply_mscale(config.rope_parameters, self.scaling)
            # What the window weighs against the past, see `naive_hybrid_attention`
            self.log_window_weight = nn.Parameter(torch.zeros(config.num_attention_heads))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        segment_ids: torch.Tensor | None = None,
        **kwargs,
    ):
        """
        Args:
            hidden_states: `(B, S, hidden)`.
            position_embeddings: cos and sin, each `(B, S, D)`, or None for no positions.
            attention_mask: `(B, S)`, 0 where a token is padding, or None.
            segment_ids: `(B, S)` ids of packed documents, or None.

        Returns: `(B, S, hidden)`, and None in the place of attention weights.
        """
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)

        cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        memory = None
        if cache is not None and cache.has_previous_state[0]:
            memory = [cache.recurrent_states[0]]
            if self.window is not None:
                memory += cache.conv_states[0].split([self.head_dim, self.head_dim, self.head_dim + 1], dim=-1)
        with torch.autocast(hidden_states.device.type, enabled=False):
            output, memory = self.attend(query, key, value, position_embeddings, attention_mask, segment_ids, memory)
        if cache is not None:
            cache.update_recurrent_state(memory[0], num_tokens=query.shape[2])
            if self.window is not None:
                cache.update_conv_state(torch.cat(memory[1:], dim=-1))  # replaces all: the last dimension is full
            cache.has_previous_state[0] = True  # transformers sets it for convolutions alone

        output = output.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return self.o_proj(output), None

    def attend(self, query, key, value, position_embeddings=None, attention_mask=None, segment_ids=None, memory=None):
        """From queries `(B, H, S, D)`, keys and values `(B, K, S, D)` to the output `(B, H, S, D)`, in fp32, and the
        memory: the state `(B, K, features, D + 1)` and, with a window, its keys, rotated keys and values with their
        column of ones, each `(B, K, W, ...)`."""
        size = PIECE if query.device.type == "cpu" else query.shape[2]
        step = self.attend_linear if self.window is None else self.attend_hybrid
        operands = [x.split(size, dim=2) for x in (query, key, value)]
        for x in (*(position_embeddings or (None, None)), attention_mask, segment_ids):
            operands.append([None] * len(operands[0]) if x is None else x.split(size, dim=1))

        outputs, last_id = [], None
        for q, k, v, cos, sin, mask, ids in zip(*operands, strict=True):
            if ids is not None:
                if last_id is not None:
                    memory = [x * (ids[:, 0] == last_id)[:, None, None, None] for x in memory]
                last_id = ids[:, -1]
            v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
            if mask is not None:
                v = v * mask[:, None, :, None].to(v.dtype)
            log_decay = self.log_decay(q, mask) if self.config.linear_decay else None
            output, memory = step(q, k, v, (cos, sin), log_decay, ids, memory)
            outputs.append(output)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2), memory

    def log_decay(self, query, attention_mask):
        """log(1 - 2^(-5 - head)) for each token, RetNet's rates (arXiv:2307.08621), and 0 for padding: a document ages
        by its own tokens. `(B or 1, K, S)`."""
        heads = torch.arange(self.config.num_key_value_heads, device=query.device)
        rate_K1 = torch.log1p(-torch.exp2(-5.0 - heads))[:, None]
        if attention_mask is None:
            return rate_K1.expand(1, -1, query.shape[2])
        return rate_K1 * attention_mask[:, None]

    def attend_linear(self, query, key, value, rotary, log_decay, segment_ids, memory):
        """Linear attention over the whole past. `value` has its column of ones."""
        (state,) = memory or (None,)
        q, k, v = self.q_feature_map(query.float()), self.k_feature_map(key.float()), value.float()
        if rotary[0] is None:
            sums, state = linear_sums(q, k, v, state, log_decay, segment_ids)
            return normalise(sums), [state]
        q_rot, k_rot = apply_rotary_pos_emb(q, k, *(x.float() for x in rotary))
        above, below = (None, None) if state is None else (state[..., :-1], state[..., -1:])
        numerator, above = linear_sums(q_rot, k_rot, v[..., :-1], above, log_decay, segment_ids)
        denominator, below = linear_sums(q, k, v[..., -1:], below, log_decay, segment_ids)
        return normalise(torch.cat([numerator, denominator], -1)), [torch.cat([above, below], -1)]

    def attend_hybrid(self, query, key, value, rotary, log_decay, segment_ids, memory):
        """Softmax over the window, linear attention over the tokens that have left it: see `naive_hybrid_attention`.

        A key leaves the window W tokens after it came: keys and values moved on by W tokens are the operands of the
        linear part. Both keys and rotated keys are kept: phi is given queries and keys without positions, because phi
        of rotated ones would depend on where in the batch a text stands, and not on distances alone.
        """
        W, S = self.window, query.shape[2]
        q_rot, k_rot = apply_rotary_pos_emb(query, key, *rotary)
        new = key, k_rot, value
        state, *window = memory or (None, *(x.new_zeros(*x.shape[:2], W, x.shape[3]) for x in new))
        both = [torch.cat(pair, dim=2) for pair in zip(window, new, strict=True)]
        kept = [x[:, :, -W:] for x in both]
        k, k_rot, v = (x.float() for x in both)
        v_left, window_ids = v[:, :, :S], None
        if segment_ids is not None:
            window_ids = torch.cat([segment_ids[:, :1].expand(-1, W), segment_ids], dim=1)
            v_left = v_left * (window_ids[:, :S] == segment_ids)[:, None, :, None]
            kept[2] = kept[2] * (window_ids[:, -W:] == segment_ids[:, -1:])[:, None, :, None]
        q_features, k_features = self.q_feature_map(query.float()), self.k_feature_map(k[:, :, :S])
        far, state = linear_sums(q_features, k_features, v_left, state, log_decay, segment_ids)
        near = window_sums(q_rot.float(), k_rot, v, self.scaling, window_ids)
        return normalise(far + near * self.log_window_weight.float().exp()[:, None, None]), [state, *kept]
