"""What vLLM is told about an r1llama config before it builds the model.

One architecture on disk is six to vLLM, which asks a class, and not a config, whether a model has experts and which
kinds of cache its layers need:

    full attention              R1LlamaForCausalLM          R1LlamaMoEForCausalLM
    full and linear attention   R1LlamaHybridForCausalLM    R1LlamaHybridMoEForCausalLM
    linear attention            R1LlamaLinearForCausalLM    R1LlamaLinearMoEForCausalLM

Latent attention runs on vLLM's own path, with its latent cache, where a backend of the device takes a latent of this
width. Elsewhere its keys and values are expanded and cached as those of ordinary attention: the same numbers, and no
saving of memory.
"""

import logging

import torch
from vllm import ModelRegistry, envs
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, MambaModelConfig, VerifyAndUpdateConfig
from vllm.platforms import current_platform
from vllm.transformers_utils.model_arch_config_convertor import (
    MODEL_ARCH_CONFIG_CONVERTORS,
    ModelArchConfigConvertorBase,
)
from vllm.triton_utils import HAS_TRITON
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.attention.backends.registry import AttentionBackendEnum

import r1llama  # noqa: F401  registers the config

logger = logging.getLogger("vllm.r1llama")

LATENT_WIDTHS = (576,)  # kv_lora_rank + qk_rope_head_dim of DeepSeek-V3, what every backend of vLLM takes


def is_linear(config) -> bool:
    return "full_attention" not in config.layer_types


def is_hybrid(config) -> bool:
    return not is_linear(config) and "linear_attention" in config.layer_types


def architecture(config) -> str:
    """The name in vLLM's registry."""
    kind = "Linear" if is_linear(config) else "Hybrid" if is_hybrid(config) else ""
    return f"R1Llama{kind}{'MoE' if config.num_experts else ''}ForCausalLM"


def has_latent_cache(config) -> bool:
    """Whether vLLM caches latents, rather than the keys and values made from them."""
    if config.kv_lora_rank is None or envs.VLLM_MLA_DISABLE:
        return False
    return config.kv_lora_rank + config.qk_rope_head_dim in LATENT_WIDTHS


class R1LlamaArchConfigConvertor(ModelArchConfigConvertorBase):
    def get_architectures(self) -> list[str]:
        names = super().get_architectures()
        ours = architecture(self.hf_config)
        if names not in (["R1LlamaForCausalLM"], [ours]):
            raise ValueError(f"of r1llama, vLLM serves R1LlamaForCausalLM; this is {' '.join(names) or 'unnamed'}")
        self.hf_config.architectures = [ours]  # where vLLM looks once more when it builds the model
        return [ours]

    def is_deepseek_mla(self) -> bool:
        return has_latent_cache(self.hf_config)

    def get_head_size(self) -> int:
        config = self.hf_config
        if config.kv_lora_rank is None:
            return config.head_dim
        if has_latent_cache(config):
            return config.kv_lora_rank + config.qk_rope_head_dim
        return config.qk_nope_head_dim + config.qk_rope_head_dim

    def get_total_num_kv_heads(self) -> int:
        config = self.hf_config
        return config.num_key_value_heads if config.kv_lora_rank is None else config.num_attention_heads


class R1LlamaVllmConfig(VerifyAndUpdateConfig):
    """Settings that follow from the model, made before vLLM makes the others from them."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: VllmConfig) -> None:
        config = vllm_config.model_config.hf_config
        is_bf16 = vllm_config.model_config.dtype == torch.bfloat16
        if has_latent_cache(config) and current_platform.is_cpu() and not is_bf16:
            # Not the one that vLLM prefers where a processor has AMX: it is for bf16 alone
            vllm_config.attention_config.backend = AttentionBackendEnum.CPU_MLA
        _check_head_size(vllm_config.model_config)
        if config.num_experts and vllm_config.lora_config is not None and not HAS_TRITON:
            raise ValueError("vLLM's adapters beside fused experts need Triton, which is not here: merge the adapter")
        if config.num_experts and config.hidden_act != "silu":
            raise ValueError(f"vLLM's fused experts have hidden_act 'silu'; this model has {config.hidden_act!r}")
        if vllm_config.aux_output_config.enable_return_routed_experts and config.num_experts:
            if "linear_attention" in config.layer_types:
                raise ValueError(
                    "enable_return_routed_experts: vLLM keeps expert ids beside its prefix cache, and linear "
                    "attention has none"
                )
            if current_platform.is_cpu() and not vllm_config.use_v2_model_runner:
                from r1llama.serving.routing import return_experts  # starts vLLM's worker, which asks for this module

                return_experts(vllm_config)


def _check_head_size(model_config) -> None:
    """vLLM itself would notice in the first forward, in words of its kernels."""
    config, head_size = model_config.hf_config, model_config.model_arch_config.head_size
    if is_linear(config) or has_latent_cache(config) or not current_platform.is_cpu():
        return
    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if head_size not in sizes:
        fields = "head_dim" if config.kv_lora_rank is None else "qk_nope_head_dim + qk_rope_head_dim"
        raise ValueError(
            f"a head of {head_size} channels ({fields}): vLLM's attention on a CPU has kernels for {sizes}"
        )


class R1LlamaRecurrentVllmConfig(R1LlamaVllmConfig):
    """For models with linear layers."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: VllmConfig) -> None:
        super().verify_and_update_config(vllm_config)
        parallel = vllm_config.parallel_config
        if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
            raise ValueError("linear attention is served on one device: use data parallelism instead")
        if vllm_config.speculative_config is not None:
            raise ValueError("linear attention cannot take back a token: switch speculative decoding off")
        if vllm_config.cache_config.enable_prefix_caching:
            logger.info("Linear attention keeps no state of a prefix: prefix caching is off")
            vllm_config.cache_config.enable_prefix_caching = False
        if vllm_config.compilation_config.cudagraph_mode not in (None, CUDAGraphMode.NONE):
            vllm_config.compilation_config.cudagraph_mode = CUDAGraphMode.PIECEWISE  # the state is updated outside
        MambaModelConfig.verify_and_update_config(vllm_config)


def register() -> None:
    """Fill vLLM's registries."""
    MODEL_ARCH_CONFIG_CONVERTORS["r1llama"] = R1LlamaArchConfigConvertor
    for kind in ("", "Hybrid", "Linear"):
        for experts in ("", "MoE"):
            name = f"R1Llama{kind}{experts}ForCausalLM"
            ModelRegistry.register_model(name, f"r1llama.serving.models:{name}")
            MODELS_CONFIG_MAP[name] = R1LlamaRecurrentVllmConfig if kind else R1LlamaVllmConfig
