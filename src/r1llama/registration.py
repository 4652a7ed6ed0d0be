"""Tells transformers' Auto classes about r1llama when they load, and loads neither torch nor transformers before.

So `import r1llama` is enough for `AutoModelForCausalLM.from_pretrained`, while `import r1llama.rewards`, which imports
this package too, stays light.
"""

import importlib
import importlib.util
import sys

AUTO_CONFIG = "transformers.models.auto.configuration_auto"
AUTO_MODEL = "transformers.models.auto.modeling_auto"


class RegisterAfterImport:
    """A finder for `sys.meta_path` that finds nothing itself: it adds the registration to an Auto class's import."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in (AUTO_CONFIG, AUTO_MODEL) or cls not in sys.meta_path:
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, cls)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            if name == AUTO_MODEL or AUTO_MODEL not in sys.modules:  # else the latter is still loading: its turn comes
                if cls in sys.meta_path:
                    sys.meta_path.remove(cls)
                importlib.import_module("r1llama.model.modeling")

        spec.loader.exec_module = exec_module
        return spec


def register() -> None:
    """Register the architecture: now, if the Auto classes are loaded, or else when they load."""
    if AUTO_CONFIG in sys.modules:
        importlib.import_module("r1llama.model.modeling")
    else:
        sys.meta_path.insert(0, RegisterAfterImport)
