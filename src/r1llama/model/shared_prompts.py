"""Prompts that several sequences of a batch share, as the completions of a group do in GRPO: computed once for all.

Of B sequences, each a prompt of P tokens and a completion of R, N <= B prompts are distinct. Their tokens and those of
the completions run through the model as one row of T = N P + B R: nothing but attention looks at other tokens, and
there each completion continues from the keys and values, or the state, of its prompt (`attend`). One ordinary forward,
so that gradient checkpointing, DDP, ZeRO-3, FSDP and adapters see nothing new; the gradients of the G completions of a
prompt add up in it.

The numbers are those of the plain forward, up to the order of summation. Dropout, where it is on, draws one mask for
a prompt and not G.
"""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class PromptLayer(CacheLayerMixin):
    """What one attention layer knows of the prompts. The first call, with the prompts, is kept, one copy for each
    completion; the second, with the completions, continues from it. Nothing is written in place, for the gradients."""

    is_compileable = False

    def __init__(self, prompt_of: torch.Tensor, prompt_length: int):
        super().__init__()
        self.prompt_of, self.prompt_length = prompt_of, prompt_length
        self.recurrent_states, self.conv_states, self.has_previous_state = {0: None}, {0: None}, {0: False}

    def update(self, keys, values, *args, **kwargs):
        """Keys and values `(., heads, S, .)` of the new tokens in; those of all tokens so far out."""
        if self.keys is None:
            self.keys, self.values = (x.index_select(0, self.prompt_of) for x in (keys, values))
            return keys, values
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)

    def update_recurrent_state(self, state, *args, **kwargs):
        if self.recurrent_states[0] is None:
            self.recurrent_states[0] = state.index_select(0, self.prompt_of)

    def update_conv_state(self, window, *args, **kwargs):
        if self.conv_states[0] is None:
            self.conv_states[0] = window.index_select(0, self.prompt_of)

    def lazy_initialization(self, key_states, value_states):
        pass

    def get_seq_length(self):
        return self.prompt_length

    def get_max_length(self):
        return -1

    def get_mask_sizes(self, query_length):
        return self.prompt_length + query_length, 0


class PromptCache(Cache):
    """A `PromptLayer` as the cache that the attention layers ask for. Latent attention stores its keys and values
    expanded here: expanding the latents again for each completion would be the larger part of its work."""

    def __init__(self, prompt_of: torch.Tensor, prompt_length: int, layer_idx: int = 0):
        super().__init__(layers=[PromptLayer(prompt_of, prompt_length)] * (layer_idx + 1))


class SharedPrompts:
    """A batch, laid out as one row.

    Args:
        input_ids: `(B, P + R)`.
        attention_mask: `(B, P + R)`, 0 for padding, which is on the left of the prompts; None: no padding.
        prompt_length: P.
    """

    def __init__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, prompt_length: int):
        if not 0 < prompt_length < input_ids.shape[1]:
            raise ValueError(
                f"prompt_length is {prompt_length}: of {input_ids.shape[1]} tokens, at least one must belong to the "
                "prompt and one to the completion"
            )
        prompts, completions = input_ids.tensor_split([prompt_length], dim=1)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompt_mask = mask[:, :prompt_length]
        first, self.prompt_of = distinct_rows(prompts, prompt_mask)
        self.input_ids = join(prompts[first], completions)
        self.masks = prompt_mask[first], mask  # completions also see their prompts
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        self.position_ids = (
            positions[:, :prompt_length].expand(len(first), -1),
            positions[:, prompt_length:].expand(len(prompts), -1),
        )
        tokens = torch.arange(self.input_ids.shape[1], device=input_ids.device)[None]
        prompt_rows, completion_rows = split(tokens, self.position_ids)
        self.rows = torch.cat([prompt_rows[self.prompt_of], completion_rows], dim=1)  # (B, P + R): where each token is

    def from_last_prompt_token(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(1, T, hidden)` -> `(B, 1 + R, hidden)`: what the completions are predicted from, and their last token."""
        prompts, completions = split(hidden_states, self.position_ids)
        return torch.cat([prompts[:, -1:].index_select(0, self.prompt_of), completions], dim=1)


def distinct_rows(ids: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Of B rows of ids with their mask: the indices `(N,)` of rows that are all different, and `(B,)`, the position
    in that list of the row that each one equals."""
    rows = ids if mask is None else torch.cat([ids, mask.to(ids.dtype)], dim=1)
    distinct, row_of = rows.unique(dim=0, return_inverse=True)
    indices = torch.arange(len(rows), device=rows.device)
    return row_of.new_empty(len(distinct)).scatter_(0, row_of, indices), row_of


def join(prompts: torch.Tensor, completions: torch.Tensor) -> torch.Tensor:
    """`(N, P, ...)` and `(B, R, ...)` -> `(1, T, ...)`"""
    return torch.cat([prompts.flatten(0, 1), completions.flatten(0, 1)])[None]


def split(x: torch.Tensor, position_ids: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """`(1, T, ...)` -> `(N, P, ...)` and `(B, R, ...)`, the shapes of the two `position_ids`."""
    parts = x[0].split([positions.numel() for positions in position_ids])
    return tuple(part.unflatten(0, positions.shape) for part, positions in zip(parts, position_ids, strict=True))


def attend(attention, hidden_states, prompt_of, attention_mask, position_ids, position_embeddings, **kwargs):
    """Run an attention layer over the prompts, then over the completions that continue from them.

    Args:
        attention: the layer, of any kind.
        hidden_states: `(1, T, hidden)`.
        prompt_of: `(B,)` index of each completion's prompt.
        attention_mask, position_ids, position_embeddings: each a pair, for the prompts and for the completions.

    Returns: `(1, T, hidden)`.
    """
    cache = PromptCache(prompt_of, position_ids[0].shape[1], attention.layer_idx)
    kwargs |= {"past_key_values": cache, "use_cache": False}
    outputs = []
    for i, part in enumerate(split(hidden_states, position_ids)):
        output, _ = attention(
            hidden_states=part,
            attention_mask=attention_mask[i],
            position_ids=position_ids[i],
            position_embeddings=position_embeddings[i],
            **kwargs,
        )
        outputs.append(output)
    return join(*outputs)
