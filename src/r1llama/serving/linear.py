"""Linear attention in vLLM: the layer's memory is a state of fixed size, which vLLM keeps for each running text.

vLLM hands over the tokens of all texts in one row, first those of texts that go on by one token, then stretches of
prompts, and with them the place of each text's memory in its cache. The attention itself is the model's own
(`R1LlamaLinearAttention.attend`), so that every feature map, decay, rotation and window is served as it was trained.

Shapes: N texts, T tokens of all of them, S of one, H heads, K key heads, D head dim, W window.
"""

from itertools import pairwise

import torch
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from r1llama.model.linear_attention import R1LlamaLinearAttention


def memory_shapes(config) -> tuple[tuple[int, ...], ...]:
    """Of one text in one layer: the state and, with a window, its keys, rotated keys and values with their ones."""
    features = config.head_dim * (2 if config.linear_feature_map == "hedgehog" else 1)
    state = (config.num_key_value_heads, features, config.head_dim + 1)
    if config.linear_window is None:
        return (state,)
    return state, (config.num_key_value_heads, config.linear_window, 3 * config.head_dim + 1)


def memory_dtypes(config, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The state is fp32: a bf16 sum stops growing after a few hundred tokens."""
    return (torch.float32,) if config.linear_window is None else (torch.float32, dtype)


class ServedLinearAttention(R1LlamaLinearAttention, MambaBase):
    mamba_type = MambaAttentionBackendEnum.LINEAR

    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        vllm_config: VllmConfig = get_current_vllm_config()
        self.dtype = vllm_config.model_config.dtype
        self.layer_name = f"{layer_idx}.linear_attn"
        self.kv_cache = ()
        vllm_config.compilation_config.static_forward_context[self.layer_name] = self

    def get_state_shape(self):
        return memory_shapes(self.config)

    def get_state_dtype(self):
        return memory_dtypes(self.config, self.dtype)

    def forward(self, hidden_states, position_embeddings=None, **kwargs):
        """`hidden_states` `(1, T, hidden)`; cos and sin, each `(1, T, D)`, or None."""
        query, key, value = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        output = torch.zeros_like(query)
        cos, sin = position_embeddings or (None, None)
        torch.ops.vllm.r1llama_linear_attention(query, key, value, output, self.layer_name, cos, sin)
        return self.o_proj(output), None

    def attend_texts(self, query, key, value, output, rotary):
        """Fills `output`, `(1, T, H * D)`, text by text; those with one new token are one batch."""
        metadata = get_forward_context().attn_metadata
        if metadata is None:  # vLLM measures its memory
            return
        metadata = metadata[self.layer_name]
        query, key, value, result = (x[0].unflatten(-1, (-1, self.head_dim)) for x in (query, key, value, output))

        def attend(tokens, slots, is_new, shape):
            """`tokens`: a slice of T; `slots` `(N,)`: where the memories are; `shape`: (N, S)."""
            memory = [cache[slots].masked_fill(is_new[:, None, None, None], 0) for cache in self.kv_cache]
            if self.window is not None:
                memory[1:] = memory[1].split([self.head_dim, self.head_dim, self.head_dim + 1], dim=-1)
            q, k, v = (x[tokens].unflatten(0, shape).transpose(1, 2) for x in (query, key, value))
            positions = None if rotary is None else [x[0, tokens].unflatten(0, shape) for x in rotary]
            out, memory = self.attend(q, k, v, positions, memory=memory)
            memory = [memory[0]] if self.window is None else [memory[0], torch.cat(memory[1:], dim=-1)]
            for cache, new in zip(self.kv_cache, memory, strict=True):
                cache[slots] = new.to(cache.dtype)
            result[tokens] = out.transpose(1, 2).flatten(0, 1).to(result.dtype)

        slots, lengths = metadata.state_indices_tensor, metadata.seq_lens
        decodes = metadata.num_decodes
        if decodes:  # a prompt of one token is among them
            attend(slice(0, decodes), slots[:decodes], lengths[:decodes] == 1, (decodes, 1))
        starts = metadata.query_start_loc[decodes:].tolist() if metadata.num_prefills else []
        for i, (start, end) in enumerate(pairwise(starts), start=decodes):
            attend(slice(start, end), slots[i : i + 1], lengths[i : i + 1] == end - start, (1, end - start))


def _linear_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    layer_name: str,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
) -> None:
    layer = get_forward_context().no_compile_layers[layer_name]
    layer.attend_texts(query, key, value, output, None if cos is None else (cos, sin))


# One op to the compiler, which cannot see how many texts there are
direct_register_custom_op(
    op_name="r1llama_linear_attention",
    op_func=_linear_attention,
    mutates_args=["output"],
    fake_impl=lambda *_: None,  # what it fills has its shape before
)
