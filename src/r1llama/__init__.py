"""Take any Llama, give it DeepSeek's architecture, teach it to reason, serve it.

Importing this package registers the architecture with transformers' Auto classes:

>>> import r1llama
>>> from transformers import AutoModelForCausalLM
>>> model = AutoModelForCausalLM.from_pretrained("path/to/an/r1llama/model")
"""

from importlib import import_module

from . import registration, versions

__version__ = "0.1.0"
__all__ = [  # loaded from r1llama.model when first used
    "R1LlamaConfig",
    "R1LlamaForCausalLM",
    "R1LlamaForSequenceClassification",
    "R1LlamaForTokenClassification",
    "R1LlamaModel",
]

versions.check()
registration.register()


def __getattr__(name):
    if name in __all__:
        return getattr(import_module("r1llama.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
