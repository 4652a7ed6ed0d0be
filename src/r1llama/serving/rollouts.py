"""vLLM's engine as a trainer calls it."""

import numpy as np
from vllm import LLM

from . import kernels


class RolloutLLM(LLM):
    """Keeps the expert ids of the newest texts, `(T - 1, layers, K)` each, which TRL leaves in vLLM's outputs; None
    for an engine that returns none."""

    routed_experts: list[np.ndarray | None]

    def __init__(self, *args, **kwargs):
        kernels.choose_sampling()
        super().__init__(*args, **kwargs)

    def generate(self, *args, **kwargs):
        outputs = super().generate(*args, **kwargs)
        self.routed_experts = [text.routed_experts for output in outputs for text in output.outputs]
        return outputs
