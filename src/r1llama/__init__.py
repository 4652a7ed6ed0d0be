"""Take any Llama, give it DeepSeek's architecture, teach it to reason, serve it.

Importing this package registers the architecture with transformers' Auto classes:

>>> import r1llama
>>> from transformers import AutoModelForCausalLM
>>> model = AutoModelForCausalLM.from_pretrained("path/to/an/r1llama/model")
"""

from importlib import import_module

from . import registration

__version__ = "0.1.0"

registration.register()


def __getattr__(name):
    if not name.startswith("_") and name in (model := import_module("r1llama.model")).__all__:
        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
