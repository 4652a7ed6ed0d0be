"""Rollouts of a group by vLLM and by transformers' `generate`: SmolLM2-135M with latent attention, 32 completions.

As GRPO makes them: 4 prompts of 8 completions each, sampled at temperature 1, all of full length. Both sides compute a
prompt once for its group: r1llama's `generate` by itself, vLLM by prefix caching in small blocks.
"""

import statistics
import tempfile
from functools import partial

import torch
from transformers import GenerationConfig

from benchmarks.architecture.measure import Row
from benchmarks.serving.engine import engine, seconds, write
from benchmarks.serving.smollm2 import smollm2, to_latent

PROMPTS, GROUP, PROMPT = 4, 8, 128


def random_prompts(count: int, length: int) -> list[list[int]]:
    return torch.randint(3, 49152, (count, length), generator=torch.Generator().manual_seed(0)).tolist()


def generate(model, prompts: list[list[int]], new_tokens: int, do_sample: bool = True) -> torch.Tensor:
    """Completions `(N, new_tokens)` by transformers."""
    model.generation_config.eos_token_id = None
    config = GenerationConfig(do_sample=do_sample, top_k=0 if do_sample else None, max_new_tokens=new_tokens)
    config.pad_token_id = 0
    ids = torch.tensor(prompts, device=model.device)
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[:, ids.shape[1] :]


@torch.no_grad()
def logprob_difference(model, prompts, tokens, logprobs) -> float:
    """The largest difference between the log-probabilities that vLLM gave its tokens and those of transformers."""
    ids = torch.tensor([prompt + text for prompt, text in zip(prompts, tokens, strict=True)], device=model.device)
    logits = model(ids, logits_to_keep=len(tokens[0]) + 1).logits[:, :-1].float()
    expected = logits.log_softmax(-1).gather(-1, ids[:, -len(tokens[0]) :, None])[..., 0]
    return (expected.cpu() - torch.tensor(logprobs)).abs().max().item()


def same_text(folder: str, model, prompts: list[list[int]], new_tokens: int) -> Row:
    with engine(folder, dtype="float32", max_model_len=PROMPT + new_tokens, kv_cache_memory_bytes=1 << 30) as llm:
        greedy, _ = write(llm, prompts, new_tokens)
        sampled = write(llm, prompts, new_tokens, temperature=1.0, logprobs=True)
    expected = generate(model, prompts, new_tokens, do_sample=False).tolist()
    return Row(
        "greedy text, SmolLM2-135M as latent, fp32",
        "transformers",
        sum(ours == theirs for ours, theirs in zip(greedy, expected, strict=True)),
        len(prompts),
        unit=f"of {len(prompts)} texts equal over {new_tokens} tokens",
        note="difference: of the log-probabilities of as many sampled tokens",
        error=logprob_difference(model, prompts, *sampled),
    )


def peak(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a large matrix product; best of several."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(5))


def rollout(folder: str, model, dtype: str, new_tokens: int, repeats: int, device: str):
    """Two rows: the ratio, and how near the machine's matrix products the engine is."""
    prompts = [prompt for prompt in random_prompts(PROMPTS, PROMPT) for _ in range(GROUP)]
    model = model.to(getattr(torch, dtype))
    with engine(
        folder,
        dtype=dtype,
        max_model_len=PROMPT + new_tokens,
        max_num_seqs=len(prompts),
        kv_cache_memory_bytes=1 << 30,
    ) as llm:

        def ours(tokens):
            llm.reset_prefix_cache()
            write(llm, prompts, tokens, temperature=1.0)

        def theirs(tokens):
            generate(model, prompts, tokens)

        sides = {"vLLM": ours, "transformers": theirs}
        prefill, runs = {}, []
        for name, side in sides.items():
            side(4)
            prefill[name] = seconds(partial(side, 1), device)
        for _ in range(repeats):
            runs.append({name: seconds(partial(side, new_tokens), device) for name, side in sides.items()})
        single = seconds(lambda: write(llm, prompts[:1], 17, temperature=1.0), device) / 17
    total = {name: statistics.median(run[name] for run in runs) for name in sides}
    step = {name: (total[name] - prefill[name]) / (new_tokens - 1) for name in sides}
    size = f"{PROMPTS} prompts of {PROMPT} x {GROUP} completions of {new_tokens}, {dtype}"
    yield Row(
        f"rollout, SmolLM2-135M as latent, {size}",
        "transformers generate, same model",
        total["transformers"] / total["vLLM"],
        5.0 if device == "cuda" else 1.5,
        note="; ".join(
            f"{name} {len(prompts) * new_tokens / total[name]:.0f} tokens/s (prompts {prefill[name]:.2f} s, "
            f"then {1e3 * step[name]:.0f} ms a step)"
            for name in sides
        ),
    )
    products = 2 * len(prompts) * sum(p.numel() for p in model.parameters())
    best = peak(getattr(torch, dtype), device)
    yield Row(
        f"limit of that decode, {dtype}",
        f"matrix products at {best / 1e9:.0f} GFLOP/s",
        100 * products / best / step["vLLM"],
        unit="%",
        note=f"{products / 1e9:.1f} GFLOP a step at {products / step['vLLM'] / 1e9:.0f} GFLOP/s; "
        f"a step of one text alone, weights and overhead: {1e3 * single:.0f} ms",
    )


def rows(quick: bool, device: str):
    new_tokens, repeats = (8, 1) if quick else (128, 3)
    model = to_latent(smollm2(device))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield same_text(folder, model, random_prompts(16, 32), 8 if quick else 64)
        for dtype in ("bfloat16",) if quick or device == "cuda" else ("float32", "bfloat16"):
            yield from rollout(folder, model, dtype, new_tokens, repeats, device)
