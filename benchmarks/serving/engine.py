"""vLLM's engine in this process, one at a time, and how it is timed."""

import contextlib
import gc
import os
import time
from collections.abc import Callable

import torch

from benchmarks.architecture.measure import synchronize


@contextlib.contextmanager
def engine(folder: str, **arguments):
    """`vllm.LLM` on a saved model, in this process and with its number of threads. It ends with the block.

    Args:
        folder: The model.
        arguments: Of `vllm.LLM`. Where they do not say otherwise: eager on a CPU, whose compilation takes minutes.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    defaults = {
        "enforce_eager": not torch.cuda.is_available(),
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    llm = LLM(folder, **defaults | arguments)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def sampling(new_tokens: int, temperature: float, logprobs: bool = False):
    """Exactly `new_tokens` tokens of each prompt."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=temperature,
        max_tokens=new_tokens,
        ignore_eos=True,
        detokenize=False,
        logprobs=0 if logprobs else None,
    )


def write(llm, prompts: list[list[int]], new_tokens: int, temperature: float = 0.0, logprobs: bool = False):
    """Completions of exactly `new_tokens` tokens, in the order of the prompts.

    Returns: the tokens `(N, new_tokens)`, and with `logprobs` those of the tokens, as lists; else None.
    """
    inputs = [{"prompt_token_ids": ids} for ids in prompts]
    outputs = llm.generate(inputs, sampling(new_tokens, temperature, logprobs), use_tqdm=False)
    outputs = [output.outputs[0] for output in outputs]
    tokens = [list(output.token_ids) for output in outputs]
    if not logprobs:
        return tokens, None
    return tokens, [
        [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
        for output in outputs
    ]


def seconds(function: Callable[[], object], device: str) -> float:
    """Of one call. One thread on a CPU counts its own time, which others on the machine lengthen less."""
    is_alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if is_alone else time.perf_counter
    synchronize(device)
    start = clock()
    function()
    synchronize(device)
    return clock() - start
