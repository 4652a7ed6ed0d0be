"""What a step of decode does on a CPU beside its matrix products, sooner than vLLM 0.31 does it there.

rms_norm  vLLM's own kernel, which it does not choose: a quarter of the time of its six torch operations, and 4 % for
          a long prompt in fp32
sample    takes one random number for each text, not one for each token of the vocabulary: a sixth of the time
"""

import torch
from vllm import ir
from vllm.platforms import current_platform
from vllm.v1.sample.ops import topk_topp_sampler

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


def sample(logits: torch.Tensor) -> torch.Tensor:
    """A token for each text, from its logits `(N, vocabulary)`, by inversion of the cumulated probabilities."""
    tokens = []
    for texts in logits.split(torch.get_num_threads()):  # what a processor's cache holds
        cumulated = texts.softmax(-1, dtype=torch.float32).cumsum(-1, dtype=torch.float64)
        points = torch.rand(len(texts), 1, dtype=torch.float64) * cumulated[:, -1:]
        tokens.append(torch.searchsorted(cumulated, points, right=True))
    return torch.cat(tokens).squeeze(-1).clamp_(max=logits.shape[-1] - 1)  # past the end where logits are NaN


def choose_sampling() -> None:
    """On a CPU, for all models of this process. Requests with a seed of their own keep vLLM's."""
    if current_platform.is_cpu():
        topk_topp_sampler.compiled_random_sample = sample
