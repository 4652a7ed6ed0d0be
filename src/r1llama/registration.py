"""Tells transformers' Auto classes about r1llama when they load, and loads neither torch nor transformers before.

So `import r1llama` is enough for `AutoModelForCausalLM.from_pretrained`, while `import r1llama.rewards`, which imports
this package too, stays light.
"""

import importlib
import importlib.util
import sys

AUTO_CONFIG = "transformers.models.auto.configuration_auto"


class RegisterAfterImport:
    """A finder for `sys.meta_path` that finds nothing itself. It watches transformers load, and registers when the
    Auto classes are there and no module of transformers is left half-loaded."""

    depth = 0  # modules of transformers that are loading, one inside another
    is_looking = False

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if cls.is_looking or not name.startswith("transformers."):
            return None
        cls.is_looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            cls.is_looking = False
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = cls.watched(spec.loader.exec_module)
        return spec

    @classmethod
    def watched(cls, execute):
        def exec_module(module):
            cls.depth += 1
            try:
                execute(module)
            finally:
                cls.depth -= 1
            if cls.depth == 0 and AUTO_CONFIG in sys.modules and cls in sys.meta_path:
                sys.meta_path.remove(cls)
                importlib.import_module("r1llama.model.modeling")

        return exec_module


def register() -> None:
    """Register the architecture: now, if the Auto classes are loaded, or else when they have loaded."""
    if AUTO_CONFIG in sys.modules:
        importlib.import_module("r1llama.model.modeling")
    else:
        sys.meta_path.insert(0, RegisterAfterImport)
