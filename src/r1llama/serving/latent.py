"""Latent attention in vLLM on a CPU: one latent and one rotary key a token in its paged cache, of any width.

vLLM's own backend of latents on a CPU takes one width and forbids chunked prefill and prefix caching. This one is a
layer like any other to vLLM: the attention is read from the cache, by

    decode   absorbed: what texts begin with together, such as the prompt of a group, is read once, all heads of all
             of them as the queries of one product, for groups that are alike at once; the rest of texts of like length
             at once, their latents gathered into a buffer that stays in a processor's cache
    prefill  text by text, absorbed or expanded, whichever takes fewer multiplications

The projections, norms and rotations are the model's own (`R1LlamaLatentAttention.forward`).

Shapes: T tokens of all texts in one row, first those of texts that go on by one token; N texts, S new and L cached and
new tokens of a text, P of a beginning that the texts of a group share, H heads, W = r + dr width of the cache,
r, dn, dr, dv as in `model/latent_attention.py`.
"""

from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch.nn import functional as F
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.quantization.utils.quant_utils import get_and_maybe_dequant_weights
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backend import AttentionBackend, AttentionMetadataBuilder, MultipleOf
from vllm.v1.attention.backends.utils import split_decodes_and_prefills
from vllm.v1.kv_cache_interface import AttentionSpec, MLAAttentionSpec

from r1llama.model.latent_attention import R1LlamaLatentAttention

from .beginnings import alike_at_first

GATHERED = 1 << 19  # numbers read from the cache at a time, unless one text has more: 2 MiB in fp32


@dataclass
class Decodes:
    """Texts that go on by one token: G groups of as many texts, those of a group with the same first P tokens. No text
    has more than L tokens of its own, and each group has one with more than half as many."""

    rows: torch.Tensor | None  # (N,): where they are in T, group by group; None: all, in their order
    beginnings: torch.Tensor  # (G, P / block size): the blocks
    blocks: torch.Tensor  # (N * own blocks of a text,)
    mask: torch.Tensor  # (N, 1, L): 0, or -inf past a text's end
    gathered: torch.Tensor  # (N * own blocks of a text, block size, W): room for their latents


@dataclass
class Prefill:
    """A text that goes on by more than one token."""

    tokens: slice
    length: int
    blocks: torch.Tensor | None  # None: all of it is new
    mask: torch.Tensor | None  # (S, L); None is causal


@dataclass
class LatentMetadata:
    slots: torch.Tensor  # (T,): the row of the cache for each new token
    decodes: list[Decodes]
    prefills: list[Prefill]


class LatentMetadataBuilder(AttentionMetadataBuilder[LatentMetadata]):
    """What the layers of a step share."""

    reorder_batch_threshold = 1

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False) -> LatentMetadata:
        common, size = common_attn_metadata, self.kv_cache_spec.block_size
        width, dtype = self.kv_cache_spec.head_size, self.kv_cache_spec.dtype
        num_decodes, num_prefills, _, _ = split_decodes_and_prefills(common, self.reorder_batch_threshold)
        table, lengths = common.block_table_tensor, common.seq_lens

        chosen, room = [], GATHERED * torch.get_num_threads() // width
        for groups, shared in alike_at_first(table[:num_decodes], lengths, size):
            own = (lengths[groups] - shared * size).amax(1)
            order = own.argsort(descending=True)
            while len(order):
                L = -(-int(own[order[0]]) // size) * size
                alike, N = int((2 * own[order] > L).sum()), max(1, room // L)
                some = order[: max(1, min(alike, N // groups.shape[1]))]
                order = order[len(some) :]
                chosen += [(part, shared, L) for part in groups[some.sort().values].split(N, dim=1)]
        gathered = torch.empty(max([groups.numel() * L for groups, _, L in chosen], default=0), width, dtype=dtype)
        decodes = []
        for groups, shared, L in chosen:
            rows = groups.flatten()
            past_end = torch.arange(L) >= (lengths[rows] - shared * size)[:, None, None]
            decodes.append(
                Decodes(
                    rows=None if torch.equal(rows, torch.arange(num_decodes)) else rows,
                    beginnings=table[groups[:, 0], :shared],
                    blocks=table[rows, shared : shared + L // size].flatten(),
                    mask=torch.zeros(past_end.shape).masked_fill_(past_end, -torch.inf),
                    gathered=gathered[: len(rows) * L].view(-1, size, width),
                )
            )

        prefills = []
        starts = common.query_start_loc[num_decodes : num_decodes + num_prefills + 1].tolist()
        for i, (start, end) in enumerate(pairwise(starts), start=num_decodes):
            S, L = end - start, int(lengths[i])
            blocks = mask = None
            if L > S:
                blocks = table[i, : -(-L // size)]
                mask = torch.ones(S, L, dtype=torch.bool).tril(L - S)
            prefills.append(Prefill(slice(start, end), L, blocks, mask))
        return LatentMetadata(common.slot_mapping[: common.num_actual_tokens].long(), decodes, prefills)


class LatentBackend(AttentionBackend):
    @staticmethod
    def get_name() -> str:
        return "R1LLAMA_LATENT"

    @staticmethod
    def get_impl_cls():
        raise NotImplementedError("the layer itself attends")

    @staticmethod
    def get_builder_cls():
        return LatentMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None):
        return [MultipleOf(1)]

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> MLAAttentionSpec:
        """Of a token, one row: vLLM's own counts keys and values."""
        known = {field.name: getattr(spec, field.name) for field in fields(AttentionSpec) if field.init}
        return MLAAttentionSpec(**known | {"head_size_v": 0})


class ServedLatentAttention(R1LlamaLatentAttention, AttentionLayerBase):
    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.layer_name = f"{layer_idx}.attn"
        self.kv_cache = torch.empty(0)

    def get_attn_backend(self):
        return LatentBackend

    def get_kv_cache_spec(self, vllm_config: VllmConfig):
        return MLAAttentionSpec(
            block_size=vllm_config.cache_config.block_size,
            num_kv_heads=1,
            head_size=self.kv_lora_rank + self.qk_rope_head_dim,
            dtype=vllm_config.model_config.dtype,
        )

    def bind_kv_cache(self, kv_cache: torch.Tensor) -> None:
        """`(blocks, 1, block size, W)`."""
        self.kv_cache = kv_cache.squeeze(1)

    def is_absorbed(self, S: int, T: int) -> bool:
        """Always, as far as the model's forward knows: it leaves the attention to `absorbed_attention`."""
        return True

    def absorbed_attention(self, q_nope, q_pe, joint, attention_mask):
        """Of all texts: `(1, H, T, dn)`, `(1, H, T, dr)`, `(1, 1, T, W)` -> `(1, T, H * dv)`."""
        H, T = q_nope.shape[1:3]
        output = q_nope.new_empty(1, T, H * self.v_head_dim)
        torch.ops.vllm.r1llama_latent_attention(q_nope, q_pe, joint, output, self.layer_name)
        return output

    def up_projections(self, adapter: int = -1) -> torch.Tensor:
        """`kv_b_proj` as `(H, dn + dv, r)`, with an adapter by its place in vLLM's stack, -1 for none."""
        weight = getattr(getattr(self.kv_b_proj, "base_layer", self.kv_b_proj), "weight", None)
        if weight is None or weight.dtype != self.kv_cache.dtype:  # vLLM's function is slow to find that it is not
            weight = get_and_maybe_dequant_weights(self.kv_b_proj, self.kv_cache.dtype)
        if adapter >= 0:
            (a,), (b,) = self.kv_b_proj.lora_a_stacked, self.kv_b_proj.lora_b_stacked
            weight = weight + b[adapter, 0] @ a[adapter, 0]  # vLLM puts the scale into b
        return weight.view(-1, self.qk_nope_head_dim + self.v_head_dim, self.kv_lora_rank)

    def attend_texts(self, q_nope, q_pe, joint, output):
        """Puts the new latents into the cache and fills `output`."""
        metadata = get_forward_context().attn_metadata
        if metadata is None:  # vLLM measures its memory
            output.zero_()
            return
        metadata = metadata[self.layer_name]
        T = len(metadata.slots)
        q_nope, q_pe, joint = q_nope[0, :, :T], q_pe[0, :, :T], joint[0, 0, :T]
        output = output[0, :T].view(T, -1, self.v_head_dim).transpose(0, 1)
        self.kv_cache.view(-1, joint.shape[-1]).index_copy_(0, metadata.slots, joint)

        adapters = [-1] * T
        if hasattr(self.kv_b_proj, "punica_wrapper"):
            adapters = self.kv_b_proj.punica_wrapper.token_lora_indices[:T].tolist()
        ups = {adapter: self.up_projections(adapter) for adapter in set(adapters)}
        decoded = sum(len(texts.mask) for texts in metadata.decodes)
        if decoded:
            output[:, :decoded] = self.decode(
                metadata.decodes, q_nope[:, :decoded], q_pe[:, :decoded], ups, adapters[:decoded]
            )
        for text in metadata.prefills:
            t = text.tokens
            output[:, t] = self.prefill(text, q_nope[:, t], q_pe[:, t], joint[t], ups[adapters[t.start]])

    def decode(self, decodes, q_nope, q_pe, ups, adapters):
        """`(H, T, dv)` of texts that go on by one token, all in fp32: the fused kernels have the softmax so, and on a
        CPU these products are sooner done in it."""
        dn, ups = self.qk_nope_head_dim, {adapter: up.float() for adapter, up in ups.items()}
        absorbed = product_by_adapter(q_nope.float(), {adapter: up[:, :dn] for adapter, up in ups.items()}, adapters)
        query = torch.cat([absorbed, q_pe], dim=-1).transpose(0, 1)
        if decodes[0].rows is None:
            latents = self.read(decodes[0], query)
        else:
            latents = query.new_empty(*query.shape[:2], self.kv_lora_rank)
            for texts in decodes:
                latents[texts.rows] = self.read(texts, query[texts.rows])
        ups = {adapter: up[:, dn:].mT for adapter, up in ups.items()}
        return product_by_adapter(latents.transpose(0, 1), ups, adapters)

    def read(self, texts, query):
        """What absorbed queries `(N, H, W)` find in the cache, `(N, H, r)`."""
        (N, H, W), r = query.shape, self.kv_lora_rank
        torch.index_select(self.kv_cache, 0, texts.blocks, out=texts.gathered)
        own = texts.gathered.view(N, -1, W).float()
        scores = torch.baddbmm(texts.mask, query, own.mT, alpha=self.scaling)
        if not texts.beginnings.numel():
            return scores.softmax(-1) @ own[..., :r]
        G, P = texts.beginnings.shape[0], texts.beginnings.shape[1] * self.kv_cache.shape[1]
        beginnings = self.kv_cache.index_select(0, texts.beginnings.flatten()).view(G, P, W).float()
        first = (query.reshape(G, -1, W) @ beginnings.mT).mul_(self.scaling)
        weights = torch.cat([first.view(N, H, P), scores], -1).softmax(-1)
        result = weights[..., P:] @ own[..., :r]
        result += (weights.view(G, -1, P + scores.shape[-1])[..., :P] @ beginnings[..., :r]).view_as(result)
        return result

    def prefill(self, text, q_nope, q_pe, joint, up):
        """`(H, S, dv)` of one text."""
        (H, S, dn), r = q_nope.shape, self.kv_lora_rank
        if text.blocks is not None:
            joint = self.kv_cache[text.blocks].flatten(0, 1)[: text.length]
        is_absorbed = self.is_cheaper_absorbed(S, text.length)
        if is_absorbed:
            query = torch.cat([q_nope @ up[:, :dn], q_pe], dim=-1)
            key = value = joint.expand(H, -1, -1)
        else:
            query = torch.cat([q_nope, q_pe], dim=-1)
            k_nope, value = (joint[:, :r] @ up.mT).split([dn, self.v_head_dim], dim=-1)
            key = torch.cat([k_nope, joint[:, r:].expand(H, -1, -1)], dim=-1)
            value = F.pad(
                value, (0, max(0, self.qk_head_dim - self.v_head_dim))
            )  # the fused kernel wants one head dim
        output = F.scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            attn_mask=text.mask,
            is_causal=text.mask is None,
            scale=self.scaling,
        )[0]
        return output[..., :r] @ up[:, dn:].mT if is_absorbed else output[..., : self.v_head_dim]


def product_by_adapter(x: torch.Tensor, matrices: dict[int, torch.Tensor], adapters: list[int]) -> torch.Tensor:
    """`(H, T, a)` times the matrix `(H, a, b)` of each token's adapter."""
    if len(matrices) == 1:
        return x @ matrices[adapters[0]]
    product = x.new_empty(*x.shape[:2], matrices[adapters[0]].shape[-1])
    for adapter, matrix in matrices.items():
        tokens = [i for i, of_token in enumerate(adapters) if of_token == adapter]
        product[:, tokens] = x[:, tokens] @ matrix
    return product


def _latent_attention(
    q_nope: torch.Tensor, q_pe: torch.Tensor, joint: torch.Tensor, output: torch.Tensor, layer_name: str
) -> None:
    get_forward_context().no_compile_layers[layer_name].attend_texts(q_nope, q_pe, joint, output)


# One op to the compiler, which cannot see how many texts there are
direct_register_custom_op(
    op_name="r1llama_latent_attention",
    op_func=_latent_attention,
    mutates_args=["output"],
    fake_impl=lambda *_: None,  # what it fills has its shape before
)
