"""What the model is: Llama with latent attention, linear attention, experts and YaRN."""

from .modeling import (  # first: loading it registers the classes, in whatever order transformers loads
    R1LlamaConfig,
    R1LlamaForCausalLM,
    R1LlamaForSequenceClassification,
    R1LlamaForTokenClassification,
    R1LlamaModel,
    R1LlamaPreTrainedModel,
)

from .adapters import lora_targets  # isort: skip
from .balancing import moe_blocks, update_router_bias  # isort: skip
from .long_context import extend_context  # isort: skip
from .routing_replay import record_routing, replay_routing  # isort: skip

__all__ = [
    "R1LlamaConfig",
    "R1LlamaForCausalLM",
    "R1LlamaForSequenceClassification",
    "R1LlamaForTokenClassification",
    "R1LlamaModel",
    "R1LlamaPreTrainedModel",
    "extend_context",
    "lora_targets",
    "moe_blocks",
    "record_routing",
    "replay_routing",
    "update_router_bias",
]
