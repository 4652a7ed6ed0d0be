"""vLLM's engine in this process, one at a time."""

import contextlib
import gc
import os

import torch


@contextlib.contextmanager
def engine(folder: str, **arguments):
    """`vllm.LLM` on a saved model, in this process and with its number of threads. It ends with the block.

    Args:
        folder: The model.
        arguments: Of `vllm.LLM`; eager where they do not say otherwise.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(folder, **{"enforce_eager": True, "disable_log_stats": True, "use_tqdm_on_load": False} | arguments)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def write(llm, prompts: list[list[int]], new_tokens: int, temperature: float = 0.0, logprobs: bool = False):
    """Completions of exactly `new_tokens` tokens, in the order of the prompts.

    Returns: the tokens `(N, new_tokens)`, and with `logprobs` those of the tokens, as lists; else None.
    """
    from vllm import SamplingParams

    parameters = SamplingParams(
        temperature=temperature,
        max_tokens=new_tokens,
        ignore_eos=True,
        detokenize=False,
        logprobs=0 if logprobs else None,
        seed=0,
    )
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False)
    outputs = [output.outputs[0] for output in outputs]
    tokens = [list(output.token_ids) for output in outputs]
    if not logprobs:
        return tokens, None
    return tokens, [
        [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
        for output in outputs
    ]
