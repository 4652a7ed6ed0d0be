"""Linear attention: softmax replaced by a kernel phi(q).phi(k), so that the past fits in one small matrix.

    o_t = sum_{i<=t} (phi(q_t).phi(k_i)) v_i / sum_{i<=t} phi(q_t).phi(k_i)          (arXiv:2006.16236)

Three forms that give the same numbers:
    naive      the sums as written, O(S^2); for tests and for reading
    chunked    S^2 inside chunks, a running state between them, O(S); training and prefill
    recurrent  one token against the state, O(1); decode

The state is `(B, H, D, D + 1)`: sum phi(k_i) v_i^T, and the normaliser sum phi(k_i) as one more column. It is fp32
whatever the model's dtype: a bf16 sum stops growing after a few hundred tokens.

With rotary positions, `q_rot` and `k_rot` (phi rotated) take the place of `q` and `k` in the numerator alone.

Shapes: B batch, H heads, S new tokens, D head dim, N chunks, C tokens a chunk.
"""

import torch
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb, repeat_kv

FEATURE_MAPS = {"elu": lambda x: F.elu(x) + 1, "relu": F.relu}
EPS = 1e-6  # least denominator: relu features may all be zero, and so are those of padding


def naive_linear_attention(q, k, v, q_rot, k_rot, segment_ids=None):
    """The definition. Arguments as in [`chunked_linear_attention`]; returns the output alone."""
    S = q.shape[2]
    mask_SS = torch.ones(S, S, dtype=torch.bool, device=q.device).tril()
    if segment_ids is not None:
        mask_SS = mask_SS & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    numerator = (q_rot @ k_rot.mT).masked_fill(~mask_SS, 0) @ v
    denominator = (q @ k.mT).masked_fill(~mask_SS, 0).sum(-1, keepdim=True)
    return numerator / denominator.clamp_min(EPS)


def chunked_linear_attention(q, k, v, q_rot, k_rot, state=None, segment_ids=None, chunk_size=64):
    """Causal linear attention over `S` tokens, in chunks.

    Args:
        q, k: features phi, fp32 `(B, H, S, D)`; `k` is zero where a token is padding.
        v: values `(B, H, S, D)`.
        q_rot, k_rot: the features of the numerator; `q` and `k` themselves without rotary positions.
        state: `(B, H, D, D + 1)` of the tokens before, or None.
        segment_ids: `(B, S)` non-decreasing ids of packed documents, which never see each other, or None.
        chunk_size: tokens a chunk.

    Returns: output `(B, H, S, D)` and the state after the last token (of its document).
    """
    S = q.shape[2]
    C = min(chunk_size, S)
    pad = -S % C
    q, k, v, q_rot, k_rot = (F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, C)) for x in (q, k, v, q_rot, k_rot))

    mask = torch.ones(C, C, dtype=torch.bool, device=q.device).tril()
    k_state, k_rot_state = k, k_rot
    if segment_ids is not None:
        segment_ids = F.pad(segment_ids, (0, pad), mode="replicate" if pad else "constant").unflatten(1, (-1, C))
        last_BN = segment_ids[:, :, -1]
        mask = mask & (segment_ids[:, None, :, :, None] == segment_ids[:, None, :, None, :])
        in_last = (segment_ids == last_BN[:, :, None])[:, None, :, :, None]  # the rest of a chunk never leaves it
        k_state, k_rot_state = k * in_last, k_rot * in_last

    numerator = (q_rot @ k_rot.mT).masked_fill(~mask, 0) @ v
    denominator = (q @ k.mT).masked_fill(~mask, 0).sum(-1, keepdim=True)

    sums = torch.cat([k_rot_state.mT @ v, k_state.sum(-2)[..., None]], dim=-1)  # (B, H, N, D, D + 1)
    if segment_ids is None:
        first = torch.zeros_like(sums[:, :, :1]) if state is None else state[:, :, None]
        states = torch.cat([first, sums], dim=2).cumsum(2)
        before, after = states[:, :, :-1], states[:, :, -1]
        reads = q, q_rot
    else:
        N = last_BN.shape[1]
        earlier = torch.ones(N, N, dtype=torch.bool, device=q.device).tril()
        same_BNN = (earlier & (last_BN[:, :, None] == last_BN[:, None, :])).to(q.dtype)
        states = torch.einsum("bnm,bhmde->bhnde", same_BNN, sums)
        before, after = F.pad(states[:, :, :-1], (0, 0, 0, 0, 1, 0)), states[:, :, -1]
        open_BN = F.pad(last_BN[:, :-1], (1, 0), value=-1)  # the document that each chunk finds open
        goes_on = (segment_ids == open_BN[:, :, None])[:, None, :, :, None]
        reads = q * goes_on, q_rot * goes_on
    numerator = numerator + reads[1] @ before[..., :-1]
    denominator = denominator + reads[0] @ before[..., -1:]
    return (numerator / denominator.clamp_min(EPS)).flatten(2, 3)[:, :, :S], after


def recurrent_linear_attention(q, k, v, q_rot, k_rot, state):
    """One token (`S` = 1) against the state. Arguments and results as in [`chunked_linear_attention`]."""
    state = state + torch.cat([k_rot.mT @ v, k.mT], dim=-1)
    return (q_rot @ state[..., :-1]) / (q @ state[..., -1:]).clamp_min(EPS), state


class R1LlamaLinearAttention(LlamaAttention):
    """Llama's projections around linear attention; a Llama layer's weights load unchanged."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.feature_map = FEATURE_MAPS[config.linear_feature_map]

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
        key = repeat_kv(self.k_proj(hidden_states).view(shape).transpose(1, 2), self.num_key_value_groups)
        value = repeat_kv(self.v_proj(hidden_states).view(shape).transpose(1, 2), self.num_key_value_groups)

        with torch.autocast(hidden_states.device.type, enabled=False):
            q, k, v = self.feature_map(query.float()), self.feature_map(key.float()), value.float()
            if attention_mask is not None:
                k = k * attention_mask[:, None, :, None]
            q_rot, k_rot = q, k
            if position_embeddings is not None:
                q_rot, k_rot = apply_rotary_pos_emb(q, k, *(x.float() for x in position_embeddings))

            cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
            state = cache.recurrent_states[0] if cache is not None and cache.has_previous_state[0] else None
            if state is not None and q.shape[2] == 1:
                output, state = recurrent_linear_attention(q, k, v, q_rot, k_rot, state)
            else:
                output, state = chunked_linear_attention(q, k, v, q_rot, k_rot, state, segment_ids)
        if cache is not None:
            cache.update_recurrent_state(state, num_tokens=q.shape[2])
            cache.has_previous_state[0] = True  # transformers sets it for convolutions alone

        output = output.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return self.o_proj(output), None
