"""Cache layers that transformers lacks, and `prepare_cache`, which puts them into a cache of transformers.

    LatentLayer                     latents and rotary keys in one buffer that grows by a quarter when it is full
    StaticLatentLayer               the same in a buffer of fixed size, for torch.compile
    CountingLinearAttentionLayer    a recurrent state that also counts its tokens

Quantised, offloaded and user-made caches work as they come: the layers of latent attention look to them like a key of
one head and a value of one head.

Shapes: B batch, S new tokens, T cached and new tokens, r kv_lora_rank, dr qk_rope_head_dim.
"""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, LinearAttentionLayer, StaticLayer
from transformers.utils import is_torchdynamo_compiling

MIN_HEADROOM = 64  # tokens


class LatentLayer(DynamicLayer):
    """`keys` (the latents) and `values` (the rotary keys) are views of one buffer. A new token is written into it,
    where concatenation would copy the whole past."""

    buffer: torch.Tensor | None = None  # (B, 1, capacity, r + dr)
    joint: torch.Tensor | None = None  # its used part (B, 1, T, r + dr), for absorbed attention

    def update(self, latent: torch.Tensor, k_pe: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `latent` `(B, 1, S, r)` and `k_pe` `(B, 1, S, dr)`; returns all `(B, 1, T, r)`, `(B, 1, T, dr)`."""
        if torch.is_grad_enabled() and (latent.requires_grad or k_pe.requires_grad):
            self.joint = None  # what the backward pass saved must not be written over
            return super().update(latent, k_pe)
        if not self.is_initialized:
            self.lazy_initialization(latent, k_pe)
        past = self.get_seq_length()
        length = past + latent.shape[2]
        if not self.has_room(length):
            self.buffer = latent.new_empty(
                *latent.shape[:2], length + max(MIN_HEADROOM, length // 4), latent.shape[3] + k_pe.shape[3]
            )
            if past:
                self.buffer[:, :, :past] = torch.cat([self.keys, self.values], dim=-1)
        self.buffer[:, :, past:length] = torch.cat([latent, k_pe], dim=-1)
        self.joint = self.buffer[:, :, :length]
        self.keys, self.values = self.joint.split([latent.shape[3], k_pe.shape[3]], dim=-1)
        return self.keys, self.values

    def has_room(self, length: int) -> bool:
        """Whether the buffer takes `length` tokens and is still what `keys` looks into: reordering, selecting and
        moving replace `keys` and `values`."""
        return (
            self.buffer is not None
            and self.keys.data_ptr() == self.buffer.data_ptr()
            and self.keys.shape[0] == self.buffer.shape[0]
            and self.buffer.shape[2] >= length
            and self.buffer.is_inference() == torch.is_inference_mode_enabled()
        )

    def reset(self) -> None:
        super().reset()
        self.buffer = self.joint = None


class StaticLatentLayer(StaticLayer):
    """A `StaticLayer` with `keys` and `values` in one buffer, `joint` `(B, 1, max_cache_len, r + dr)`."""

    joint: torch.Tensor | None = None

    def lazy_initialization(self, latent: torch.Tensor, k_pe: torch.Tensor) -> None:
        super().lazy_initialization(latent[..., :0], k_pe[..., :0])
        self.joint = latent.new_zeros(*latent.shape[:2], self.max_cache_len, latent.shape[3] + k_pe.shape[3])
        if not is_torchdynamo_compiling():
            torch._dynamo.mark_static_address(self.joint)
        self.keys, self.values = self.joint.split([latent.shape[3], k_pe.shape[3]], dim=-1)

    def update(self, latent: torch.Tensor, k_pe: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """As in [`LatentLayer`], with `T` = `max_cache_len`."""
        if not self.is_initialized:
            self.lazy_initialization(latent, k_pe)
        positions = torch.arange(latent.shape[2], device=latent.device) + self.cumulative_length
        self.cumulative_length.add_(latent.shape[2])
        self.joint.index_copy_(2, positions, torch.cat([latent, k_pe], dim=-1))
        return self.joint.split([latent.shape[3], k_pe.shape[3]], dim=-1)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        if self.is_initialized:
            self.joint.copy_(self.joint.index_select(0, beam_idx.to(self.joint.device)))


class CountingLinearAttentionLayer(LinearAttentionLayer, CacheLayerMixin):
    """A linear layer's cache that also counts its tokens."""

    is_compileable = True
    supports_early_init = False

    def __init__(self):
        CacheLayerMixin.__init__(self)
        LinearAttentionLayer.__init__(self)
        self.num_tokens = 0

    def update(self, key_states, value_states, *args, **kwargs):
        raise TypeError("a linear-attention layer has a state, not keys and values: call update_recurrent_state")

    def update_recurrent_state(self, recurrent_states, state_idx=0, num_tokens=0):
        self.num_tokens += num_tokens
        return super().update_recurrent_state(recurrent_states, state_idx)

    def get_seq_length(self):
        return self.num_tokens

    def get_mask_sizes(self, query_length):
        return self.num_tokens + query_length, 0

    def reset(self):
        super().reset()
        self.num_tokens = 0


def prepare_cache(cache: Cache, config) -> Cache:
    """Fit `cache` to the model, in place: latents lie in one buffer, and a cache of linear layers only knows its
    length, which transformers counts in attention layers alone. Offloaded caches keep their own layers."""
    if cache.layers and not any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        cache.layers[0] = CountingLinearAttentionLayer()
    if config.kv_lora_rank is None or cache.offloading:
        return cache
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = LatentLayer
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and not layer.is_initialized:
            cache.layers[i] = LatentLayer()
        elif type(layer) is StaticLayer and not layer.is_initialized:
            cache.layers[i] = StaticLatentLayer(layer.max_cache_len)
    return cache
