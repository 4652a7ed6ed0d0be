"""What vLLM is told about an r1llama config before it builds the model.

One architecture on disk is six to vLLM, which asks a class, and not a config, whether a model has experts and which
kinds of cache its layers need:

    full attention              R1LlamaForCausalLM          R1LlamaMoEForCausalLM
    full and linear attention   R1LlamaHybridForCausalLM    R1LlamaHybridMoEForCausalLM
    linear attention            R1LlamaLinearForCausalLM    R1LlamaLinearMoEForCausalLM

Of latent attention, vLLM caches the latents:

    CPU   any width; our own layer (`latent`)
    CUDA  any width in half precision; vLLM's own layer, whose Triton backend takes the widths that the others do not.
          Its prefill reads a cached context of 320 and 576 channels only, so elsewhere a prompt is read in one piece.

In fp32 on CUDA, and there with adapters too, which vLLM's layer leaves out of decoding, the keys and values are made
from the latents and cached as those of ordinary attention: the same numbers, and no saving of memory.
VLLM_MLA_DISABLE=1 does that everywhere.
"""

import logging

import torch
from vllm import ModelRegistry, envs
from vllm.config import CompilationConfig, VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, MambaModelConfig, VerifyAndUpdateConfig
from vllm.platforms import current_platform
from vllm.transformers_utils.model_arch_config_convertor import (
    MODEL_ARCH_CONFIG_CONVERTORS,
    ModelArchConfigConvertorBase,
)
from vllm.triton_utils import HAS_TRITON
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

import r1llama  # noqa: F401  registers the config
from r1llama.serving import kernels

logger = logging.getLogger("vllm.r1llama")

NO_PREFIXES = "vLLM keeps expert ids beside its prefix cache, and this model has none"
# Tokens of a block on a CPU. Texts share full ones: of vLLM's own 128, none of a group whose prompt is shorter. Below
# 32 its C++ kernels are slow, and so is ours below 8
BLOCK, LATENT_BLOCK = 32, 8
GATHERED_WIDTHS = (320, 576)  # of a latent and its rotary key: what vLLM's CUDA kernel gathers for prefill


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
    return config.kv_lora_rank is not None and not envs.VLLM_MLA_DISABLE and not getattr(config, "is_expanded", False)


def keeps_prefixes(config, dtype: torch.dtype) -> bool:
    """Whether a text can begin with what vLLM has in its cache of another one."""
    if "linear_attention" in config.layer_types:
        return False
    # As `_cache_latents_on_cuda` has it
    is_latent = has_latent_cache(config) and not current_platform.is_cpu() and dtype != torch.float32
    return not is_latent or config.kv_lora_rank + config.qk_rope_head_dim in GATHERED_WIDTHS


class R1LlamaArchConfigConvertor(ModelArchConfigConvertorBase):
    def get_architectures(self) -> list[str]:
        names = super().get_architectures()
        ours = architecture(self.hf_config)
        if names not in (["R1LlamaForCausalLM"], [ours]):
            raise ValueError(f"of r1llama, vLLM serves R1LlamaForCausalLM; this is {' '.join(names) or 'unnamed'}")
        self.hf_config.architectures = [ours]  # where vLLM looks once more when it builds the model
        return [ours]

    def is_deepseek_mla(self) -> bool:
        """Whether vLLM's own layer of latent attention runs."""
        return has_latent_cache(self.hf_config) and not current_platform.is_cpu()

    def get_head_size(self) -> int:
        config = self.hf_config
        if config.kv_lora_rank is None:
            return config.head_dim
        if has_latent_cache(config):
            return config.kv_lora_rank + config.qk_rope_head_dim
        return config.qk_nope_head_dim + config.qk_rope_head_dim

    def get_total_num_kv_heads(self) -> int:
        config = self.hf_config
        if config.kv_lora_rank is None:
            return config.num_key_value_heads
        return 1 if has_latent_cache(config) else config.num_attention_heads


class R1LlamaVllmConfig(VerifyAndUpdateConfig):
    """Settings that follow from the model, made before vLLM makes the others from them."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: VllmConfig) -> None:
        config = vllm_config.model_config.hf_config
        if current_platform.is_cpu():
            vllm_config.kernel_config.ir_op_priority.rms_norm = [kernels.PROVIDER]
            is_latent, cache_config = has_latent_cache(config), vllm_config.cache_config
            if is_latent:
                _check_cache_dtype(vllm_config)
            if not cache_config.user_specified_block_size and (
                is_latent or keeps_prefixes(config, vllm_config.model_config.dtype)
            ):
                cache_config.block_size = LATENT_BLOCK if is_latent else BLOCK
                cache_config.user_specified_block_size = True
        elif has_latent_cache(config):
            _cache_latents_on_cuda(vllm_config)
        _check_head_size(vllm_config.model_config)
        if vllm_config.lora_config is not None and current_platform.is_cpu():
            # The CPU kernels of 0.31 index the adapters with -1 for none
            logger.warning("On a CPU, vLLM gives a request without an adapter one all the same: name one in each")
        if config.num_experts and vllm_config.lora_config is not None and not HAS_TRITON:
            raise ValueError("vLLM's adapters beside fused experts need Triton, which is not here: merge the adapter")
        if config.num_experts and config.hidden_act != "silu":
            raise ValueError(f"vLLM's fused experts have hidden_act 'silu'; this model has {config.hidden_act!r}")
        if vllm_config.aux_output_config.enable_return_routed_experts and config.num_experts:
            if not keeps_prefixes(config, vllm_config.model_config.dtype):
                raise ValueError(f"enable_return_routed_experts: {NO_PREFIXES}")
            if current_platform.is_cpu() and not vllm_config.use_v2_model_runner:
                from r1llama.serving.routing import return_experts  # starts vLLM's worker, which asks for this module

                return_experts(vllm_config)


def _check_cache_dtype(vllm_config: VllmConfig) -> None:
    cache_config = vllm_config.cache_config
    if (
        kv_cache_dtype_str_to_dtype(cache_config.cache_dtype, vllm_config.model_config)
        != vllm_config.model_config.dtype
    ):
        raise ValueError(
            f"kv_cache_dtype {cache_config.cache_dtype!r}: on a CPU, latents are cached in the dtype of the model"
        )


def _cache_latents_on_cuda(vllm_config: VllmConfig) -> None:
    model_config, config = vllm_config.model_config, vllm_config.model_config.hf_config
    if model_config.dtype == torch.float32 or vllm_config.lora_config is not None:
        config.is_expanded = True
        convertor = R1LlamaArchConfigConvertor(config, config)
        sizes = model_config.model_arch_config
        sizes.is_deepseek_mla = convertor.is_deepseek_mla()
        sizes.head_size, sizes.total_num_kv_heads = convertor.get_head_size(), convertor.get_total_num_kv_heads()
    elif not keeps_prefixes(config, model_config.dtype):
        logger.info("A latent of this width: chunked prefill and prefix caching are off")
        scheduler = vllm_config.scheduler_config
        scheduler.enable_chunked_prefill = vllm_config.cache_config.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = max(model_config.max_model_len, scheduler.max_num_batched_tokens)


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
        split_graphs(vllm_config.compilation_config)
        MambaModelConfig.verify_and_update_config(vllm_config)


def split_graphs(compilation: CompilationConfig) -> None:
    """Linear attention reads how many texts there are, and updates their states, between a CUDA graph's pieces."""
    if compilation.cudagraph_mode not in (None, CUDAGraphMode.NONE):
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
    # Of this config alone. What vLLM splits at, it makes from this list, unless the user has said what
    compilation._attention_ops = [*compilation._attention_ops, "vllm::r1llama_linear_attention"]


def register() -> None:
    """Fill vLLM's registries."""
    MODEL_ARCH_CONFIG_CONVERTORS["r1llama"] = R1LlamaArchConfigConvertor
    for kind in ("", "Hybrid", "Linear"):
        for experts in ("", "MoE"):
            name = f"R1Llama{kind}{experts}ForCausalLM"
            ModelRegistry.register_model(name, f"r1llama.serving.models:{name}")
            MODELS_CONFIG_MAP[name] = R1LlamaRecurrentVllmConfig if kind else R1LlamaVllmConfig
