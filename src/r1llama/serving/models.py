"""The models that vLLM runs: our own modules on its Transformers backend.

vLLM traces the modules and puts its own in their place: fused projections, attention with a paged cache, latent
attention with a latent cache, fused experts with the router's bias. What it cannot see by tracing is here: linear
attention, and a backbone without masks, since vLLM knows of every token which text it belongs to.
"""

from unittest import mock

from torch import nn
from transformers import AutoModel
from vllm.distributed.utils import get_pp_indices
from vllm.model_executor.layers.attention import Attention, MLAAttention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.models.transformers import TransformersForCausalLM, TransformersMoEForCausalLM
from vllm.model_executor.models.transformers.base import VLLM_ATTN_ATTR
from vllm.model_executor.models.transformers.fusers.attention import VLLM_MLA_ATTN_IMPL
from vllm.model_executor.models.transformers.fx_utils import _AllLeafTracer
from vllm.platforms import current_platform

from r1llama.model import R1LlamaConfig, R1LlamaModel

from . import kernels
from .architectures import has_latent_cache
from .latent import ServedLatentAttention
from .linear import ServedLinearAttention, memory_dtypes, memory_shapes


class ServedR1LlamaConfig(R1LlamaConfig):
    """Selects [`ServedR1LlamaModel`] in `AutoModel`, whose own entry must stay as it is for a trainer in this
    process: vLLM decorates the class that it finds there."""


class ServedR1LlamaModel(R1LlamaModel):
    config_class = ServedR1LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        for i, layer_type in enumerate(config.layer_types):
            if layer_type == "linear_attention":
                self.layers[i].self_attn = ServedLinearAttention(config, i)
            elif has_latent_cache(config) and current_platform.is_cpu():
                self.layers[i].self_attn = ServedLatentAttention(config, i)

    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None, **kwargs):
        """Tokens of all texts in one row: `input_ids` and `position_ids` `(1, T)`, or `inputs_embeds`
        `(1, T, hidden)`. Returns the hidden states `(1, T, hidden)` in a tuple."""
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        rotary = self.make_rotary(hidden_states, position_ids)
        for layer, layer_type in zip(self.layers, self.config.layer_types, strict=True):
            hidden_states = layer(hidden_states, attention_mask=None, position_embeddings=rotary[layer_type])
        return (self.norm(hidden_states),)


AutoModel.register(ServedR1LlamaConfig, ServedR1LlamaModel, exist_ok=True)


infer_meta, module_getattr = _AllLeafTracer._infer_meta, nn.Module.__getattr__


def infer_meta_untraced(self, *args):
    with mock.patch.object(nn.Module, "__getattr__", module_getattr):
        return infer_meta(self, *args)


class ServedMixin:
    def __init__(self, *, vllm_config, prefix=""):
        kernels.choose_sampling()
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def recursive_replace(self):
        """vLLM 0.31's tracer also traces how it looks a parameter up, and so on down to Python's limit of recursion:
        a second or two for each router; this way 0.02."""
        with mock.patch.object(_AllLeafTracer, "_infer_meta", infer_meta_untraced):
            super().recursive_replace()

    def _patch_config(self):
        self.config = self.text_config = ServedR1LlamaConfig.from_dict(self.config.to_dict())
        super()._patch_config()

    def _create_attention_instances(self):
        """For the layers that have none of their own: vLLM's expects as many as there are layers."""
        config, is_latent = self.config, self.model_config.use_mla
        if is_latent:
            config._attn_implementation = VLLM_MLA_ATTN_IMPL
        for i in range(
            *get_pp_indices(config.num_hidden_layers, self.pp_group.rank_in_group, self.pp_group.world_size)
        ):
            layer = self.model.layers[i].self_attn
            if isinstance(layer, ServedLatentAttention):
                layer.kv_b_proj._cpu_skip_gemm_dispatch = True  # its weight is read as it is
                self.compilation_config.static_forward_context[layer.layer_name] = layer
            if isinstance(layer, AttentionLayerBase):
                continue
            sizes = self.model_config.model_arch_config
            arguments = {
                "num_heads": self.model_config.get_num_attention_heads(self.parallel_config),
                "scale": layer.scaling,
                "cache_config": self.cache_config,
                "quant_config": self.quant_config,
                "prefix": f"{i}.attn",
            }
            if is_latent:
                for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank"):
                    arguments[name] = getattr(config, name)
                attention = MLAAttention(**arguments, kv_b_proj=layer.kv_b_proj)
            else:
                num_kv_heads = self.model_config.get_num_kv_heads(self.parallel_config)
                attention = Attention(**arguments, head_size=sizes.head_size, num_kv_heads=num_kv_heads)
            setattr(layer, VLLM_ATTN_ATTR, attention)


class RecurrentMixin(ServedMixin):
    """Some layers have linear attention: no keys and values, but a memory of fixed size."""

    has_inner_state = True

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config):
        return memory_shapes(vllm_config.model_config.hf_config)

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config):
        return memory_dtypes(vllm_config.model_config.hf_config, vllm_config.model_config.dtype)


class R1LlamaForCausalLM(ServedMixin, TransformersForCausalLM):
    pass


class R1LlamaMoEForCausalLM(ServedMixin, TransformersMoEForCausalLM):
    pass


class R1LlamaHybridForCausalLM(RecurrentMixin, TransformersForCausalLM):
    is_hybrid = True


class R1LlamaHybridMoEForCausalLM(RecurrentMixin, TransformersMoEForCausalLM):
    is_hybrid = True


class R1LlamaLinearForCausalLM(RecurrentMixin, TransformersForCausalLM):
    is_attention_free = True


class R1LlamaLinearMoEForCausalLM(RecurrentMixin, TransformersMoEForCausalLM):
    is_attention_free = True
