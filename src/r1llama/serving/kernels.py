"""RMSNorm on a CPU by vLLM's own kernel, which vLLM 0.31 has there and does not choose: a quarter of the time of its
six torch operations for a step of decode, and 4 % of the time for a long prompt in fp32."""

import torch
from vllm import ir

PROVIDER = "r1llama_cpu"


def _takes(x, weight, epsilon, variance_size=None) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype and x.shape[-1] % 16 == 0


@ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_takes)
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    """`(..., hidden)` and the weight `(hidden,)`."""
    output = torch.empty(x.shape, dtype=x.dtype)
    torch.ops._C.rms_norm(output, x.contiguous(), weight, epsilon)
    return output
