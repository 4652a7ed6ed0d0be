"""What the model is: Llama with latent attention, linear attention, experts and YaRN. Loaded when first used."""

from importlib import import_module

_HOMES = {
    "R1LlamaConfig": "configuration",
    "R1LlamaModel": "modeling",
    "R1LlamaForCausalLM": "modeling",
    "R1LlamaForSequenceClassification": "modeling",
    "R1LlamaForTokenClassification": "modeling",
    "moe_blocks": "balancing",
    "update_router_bias": "balancing",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
