"""What vLLM's cache holds and how fast it decodes, with latent attention and without: SmolLM2-135M.

The unconverted model is vLLM's own LlamaForCausalLM with its own kernels. Decoding is timed apart from the prompts: 32
texts with 2,048 tokens behind them, 4 prompts with 8 completions each, which share the prompt's blocks in the cache.
"""

import tempfile

from benchmarks.architecture.measure import Row
from benchmarks.serving.engine import engine, sampling, seconds
from benchmarks.serving.rollout import random_prompts
from benchmarks.serving.smollm2 import FOLDER, smollm2, to_latent

PROMPTS, GROUP = 4, 8
MEMORY = 1 << 30  # bytes
ROOM = 256  # tokens that a text may write, more than it does


def decode_seconds(llm, prompts: list[list[int]], steps: int, device: str) -> float:
    """Seconds of one step that writes a token of each text, after all prompts were read."""
    core = llm.llm_engine
    for i, prompt in enumerate(prompts):
        core.add_request(str(i), {"prompt_token_ids": prompt}, sampling(ROOM, 1.0))
    begun = set()
    while len(begun) < len(prompts):
        begun |= {output.request_id for output in core.step()}

    def decode():
        written = 0
        while written < steps * len(prompts):
            written += len(core.step())  # one token of each output

    decode()
    taken = seconds(decode, device) / steps
    core.abort_request(sorted(begun))
    return taken


def measure(folder, dtype: str, context: int, steps: int, device: str) -> tuple[int, int, float]:
    """Tokens that fit, bytes of one, and seconds of a decode step."""
    prompts = [prompt for prompt in random_prompts(PROMPTS, context) for _ in range(GROUP)]
    with engine(
        str(folder),
        dtype=dtype,
        max_model_len=context + ROOM,
        max_num_seqs=len(prompts),
        kv_cache_memory_bytes=MEMORY,
    ) as llm:
        cache = llm.llm_engine.vllm_config.cache_config
        tokens = cache.num_gpu_blocks * cache.block_size
        return tokens, MEMORY // tokens, decode_seconds(llm, prompts, steps, device)


def rows(quick: bool, device: str):
    context, steps = (256, 2) if quick else (2048, 16)
    with tempfile.TemporaryDirectory() as folder:
        to_latent(smollm2(device)).save_pretrained(folder)
        for dtype in ("bfloat16",) if quick or device == "cuda" else ("float32", "bfloat16"):
            latent = measure(folder, dtype, context, steps, device)
            plain = measure(FOLDER, dtype, context, steps, device)
            yield Row(
                f"tokens in a cache of 1 GiB, SmolLM2-135M as latent, {dtype}",
                "the unconverted model in vLLM",
                latent[0] / plain[0],
                8.0,
                note=f"{latent[0]:,} and {plain[0]:,} tokens of {latent[1]:,} and {plain[1]:,} bytes",
            )
            texts = PROMPTS * GROUP
            yield Row(
                f"decode of {texts} texts after {context} tokens, {dtype}",
                "the unconverted model in vLLM",
                plain[2] / latent[2],
                1.0,
                note=f"{texts / latent[2]:.0f} and {texts / plain[2]:.0f} tokens/s, "
                f"{1e3 * latent[2]:.0f} and {1e3 * plain[2]:.0f} ms a step",
            )
