"""New weights in a running engine, as a trainer sends them after each step."""

import logging
from collections.abc import Iterable

import torch
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.platforms import current_platform


def reload(worker, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Put new weights into a worker's model; caches and CUDA graphs stay as they are. The engine's prefix cache still
    holds what the old weights computed: reset it afterwards.

    Over vLLM's own `reload_weights`, it renews what vLLM 0.31 keeps packed beside the weights on a CPU: fused experts
    (`UnquantizedFusedMoEMethod._setup_kernel` packs on its first call only) and a head tied to the embeddings, which
    are renewed alone. Tested: without, log-probabilities are off by 0.1 and more, and nothing says so.

    Args:
        worker: vLLM's worker or its model runner: `llm.collective_rpc(reload, args=(weights,))`.
        weights: (name, tensor) of every parameter and every persistent buffer (the router's bias is one), named as in
            a saved model, on any device and of any dtype.

    Raises:
        ValueError: A name that the model does not have.
    """
    runner = getattr(worker, "model_runner", worker)
    model, is_cpu = runner.get_model(), current_platform.is_cpu()
    if is_cpu:
        for module in model.modules():
            if isinstance(module, RoutedExperts):
                module.quant_method.moe_kernel = None
    with set_current_vllm_config(runner.vllm_config):
        runner.reload_weights(weights_iterator=weights)
    if is_cpu:
        model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


def _is_news(record: logging.LogRecord) -> bool:
    """Not the two warnings of each reload: that rotary embeddings and a tied head got no weights, and that fused
    experts were loaded under other names than they have."""
    return "Failed to load weights" not in record.msg and "Following weights were not loaded" not in record.msg


for _name in ("vllm.model_executor.model_loader.reload.layerwise", "vllm.v1.worker.gpu_model_runner"):
    logging.getLogger(_name).addFilter(_is_news)
