"""The vLLM plugin: `vllm serve OUT` and `vllm.LLM(OUT)` run a saved r1llama model.

    architectures  what vLLM is told about a config, and what is refused
    models         the models, on vLLM's Transformers backend: its attention, latent attention and fused experts
    latent         latent attention on a CPU, from vLLM's cache at any width
    beginnings     what the texts of a step begin with together
    linear         the recurrent state of linear attention in vLLM's cache
    kernels        RMSNorm and sampling on a CPU
    server         `r1llama serve`
    thinking       the thought apart from the answer, and its budget
    rollouts       an engine as a trainer calls it
    weights        new weights in a running engine
    transfer       their way to a server without CUDA
    routing        the expert ids of rollouts, on a CPU

vLLM calls [`register`] through the entry point group `vllm.general_plugins`, in each of its processes.
"""

import logging

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

TESTED = SpecifierSet(">=0.31,<0.32")

logger = logging.getLogger("vllm.r1llama")  # under vLLM's own logger, which shows it


def is_tested(version: str) -> bool:
    try:
        return Version(Version(version).base_version) in TESTED
    except InvalidVersion:  # a build without its version
        return False


def register() -> None:
    """Tell vLLM about r1llama: names only, which load when a model is made. Safe to call again.

    Does nothing but log one line where the version of vLLM is not one that the tests cover: these interfaces change
    with every minor version.
    """
    try:
        from vllm import __version__ as version
    except ImportError:
        logger.warning("vLLM is not installed, so r1llama cannot be served by it: install r1llama[vllm]")
        return
    if not is_tested(version):
        logger.warning("r1llama is tested with vLLM %s; this is %s, and r1llama models stay unknown", TESTED, version)
        return
    from vllm.reasoning import ReasoningParserManager

    from r1llama.serving import architectures

    architectures.register()
    ReasoningParserManager.register_lazy_module("r1llama", "r1llama.serving.thinking", "ThinkParser")
