"""Decoding with latent attention: speed, cache size, and how near the machine's limit it is.

The models have the shape of SmolLM2-135M (9 heads of 64, hidden 576), fewer layers, and random weights; the caches are
filled with random latents or keys, because what is cached does not change how long it takes to read.
"""

import time

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
)

from benchmarks.architecture.measure import Row, medians, synchronize
from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.model.cache import prepare_cache

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
RANK, ROPE, HEAD = 32, 16, 64
LATENT = {
    "kv_lora_rank": RANK,
    "q_lora_rank": None,
    "qk_nope_head_dim": HEAD,
    "qk_rope_head_dim": ROPE,
    "v_head_dim": HEAD,
}
# The system of 774M parameters in the README's table, hidden 576: its rank, with the usual 32 rotary channels
LATENT_774M = {"kv_lora_rank": 72, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64}


def build(model_class, config, device):
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return model_class(config).eval().to(device, dtype)


def filled_cache(model, length: int, batch: int, static: bool = False):
    """A cache that holds `length` random tokens, and has room for some more."""
    config, parameter = model.config, next(model.parameters())
    cache = StaticCache(config=config, max_cache_len=length + 64) if static else DynamicCache(config=config)
    if isinstance(model, R1LlamaForCausalLM):
        prepare_cache(cache, config)
    heads, widths = 1, (RANK, ROPE)
    if isinstance(model, LlamaForCausalLM) and not isinstance(model, R1LlamaForCausalLM):
        heads, widths = config.num_key_value_heads, (HEAD, HEAD)
    generator = torch.Generator(parameter.device).manual_seed(1)
    for layer in range(config.num_hidden_layers):
        states = [
            torch.randn(batch, heads, length, w, generator=generator, device=parameter.device).to(parameter.dtype)
            for w in widths
        ]
        cache.update(*states, layer)
    return cache


def stepper(model, cache, batch: int):
    """A function that decodes one token for each of `batch` sequences, and returns the logits."""
    ids = torch.arange(1, batch + 1, device=next(model.parameters()).device)[:, None]

    @torch.no_grad()
    def step():
        return model(ids, past_key_values=cache).logits

    return step


def against_deepseek(context: int, batch: int, layers: int, repeats: int, device: str, bar: float | None) -> Row:
    shape = SHAPE | LATENT | {"num_hidden_layers": layers, "num_key_value_heads": 9, "rope_interleave": True}
    peer = build(DeepseekV3ForCausalLM, DeepseekV3Config(**shape, first_k_dense_replace=layers), device)
    ours = build(R1LlamaForCausalLM, R1LlamaConfig(**shape), device)
    ours.load_state_dict(peer.state_dict())
    steps = {
        name: stepper(model, filled_cache(model, context, batch), batch)
        for name, model in (("ours", ours), ("peer", peer))
    }
    error = (steps["ours"]() - steps["peer"]()).abs().max().item()
    assert error < (1e-4 if device == "cpu" else 0.2), error
    seconds = medians(steps, repeats, device)
    return Row(
        f"latent decode, {layers} layers, context {context}, batch {batch}",
        "DeepseekV3ForCausalLM",
        seconds["peer"] / seconds["ours"],
        bar,
        note=f"{batch / seconds['ours']:.0f} and {batch / seconds['peer']:.1f} tokens/s",
        error=error,
    )


def against_llama(context: int, batch: int, layers: int, repeats: int, device: str, bar: float | None = None):
    """Two rows: against Llama as `generate` runs it, with its growing cache, and with a static one, which copies
    nothing."""
    shape = SHAPE | {"num_hidden_layers": layers, "num_key_value_heads": 3}
    llama = build(LlamaForCausalLM, LlamaConfig(**shape), device)
    ours = build(R1LlamaForCausalLM, R1LlamaConfig(**shape | LATENT), device)
    steps = {
        "ours": stepper(ours, filled_cache(ours, context, batch), batch),
        "growing": stepper(llama, filled_cache(llama, context, batch), batch),
        "static": stepper(llama, filled_cache(llama, context, batch, static=True), batch),
    }
    seconds = medians(steps, repeats, device)
    millions = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (ours, llama)]
    for cache in ("growing", "static"):
        yield Row(
            f"latent decode, {layers} layers ({millions[0]:.0f}M), context {context}, batch {batch}",
            f"LlamaForCausalLM ({millions[1]:.0f}M), 9 heads on 3, {cache} cache",
            seconds[cache] / seconds["ours"],
            bar,
            note=f"{batch / seconds['ours']:.0f} and {batch / seconds[cache]:.0f} tokens/s",
        )


def cache_bytes(model_class, config, tokens: int = 8) -> float:
    """Bytes per token and layer that the cache really holds after a forward."""
    model = build(model_class, config, "cpu")
    with torch.no_grad():
        cache = model(torch.ones(1, tokens, dtype=torch.long), use_cache=True).past_key_values
    layers = cache.layers
    return sum(t.numel() * t.element_size() for x in layers for t in (x.keys, x.values)) / tokens / len(layers)


def cache_rows():
    shape = SHAPE | {"num_hidden_layers": 1, "vocab_size": 64}
    for latent, kv_heads, bar in ((LATENT, 3, None), (LATENT_774M, 9, 8.0)):
        ours = cache_bytes(R1LlamaForCausalLM, R1LlamaConfig(**shape, **latent))
        peer = cache_bytes(LlamaForCausalLM, LlamaConfig(**shape, num_key_value_heads=kv_heads))
        yield Row(
            f"cache, rank {latent['kv_lora_rank']} + {latent['qk_rope_head_dim']}",
            f"LlamaForCausalLM, 9 heads on {kv_heads}",
            peer / ours,
            bar,
            note=f"{ours:.0f} and {peer:.0f} bytes per token and layer, fp32",
        )


def bandwidth(device: str, megabytes: int) -> float:
    """Bytes per second of reading a tensor much larger than the caches; best of several."""
    x = torch.ones(megabytes * 2**18, device=device)
    best = float("inf")
    for _ in range(8):
        synchronize(device)
        start = time.perf_counter()
        x.sum()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return x.numel() * 4 / best


def physical_limit(context: int, batch: int, layers: int, repeats: int, device: str) -> Row:
    """The least time in which a decode step can read its weights and its cache, over the time it takes."""
    shape = SHAPE | LATENT | {"num_hidden_layers": layers}
    model = build(R1LlamaForCausalLM, R1LlamaConfig(**shape), device)
    step = stepper(model, cache := filled_cache(model, context, batch), batch)
    seconds = medians({"step": step}, repeats, device)["step"]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    latents = sum(layer.joint.numel() * layer.joint.element_size() for layer in cache.layers)
    rate = bandwidth(device, 512 if device == "cpu" else 4096)
    return Row(
        f"physical limit of decode, {layers} layers, context {context}, batch {batch}",
        f"reading at {rate / 1e9:.1f} GB/s",
        100 * (weights + latents) / rate / seconds,
        unit="%",
        note=f"{weights / 1e6:.0f} MB of weights, {latents / 1e6:.0f} MB of latents, {1e3 * seconds:.0f} ms a step",
    )


def break_even(layers: int, device: str, batch: int = 8) -> Row:
    """The context from which latent decode is at least as fast as Llama's with a static cache."""
    ratios = {}
    for context in (16, 64, 256, 1024, 4096):
        *_, row = against_llama(context, batch, layers, 5, device)
        ratios[context] = row.value
    first = next((c for c in ratios if all(r >= 1 for k, r in ratios.items() if k >= c)), float("nan"))
    note = ", ".join(f"{context}: {ratio:.2f}x" for context, ratio in ratios.items())
    return Row(f"break-even context, batch {batch}", "LlamaForCausalLM, static cache", first, unit="tokens", note=note)


def rows(quick: bool, device: str):
    if quick:
        SHAPE["vocab_size"] = 4096
        yield against_deepseek(2048, 8, 1, 2, device, None)
        yield from cache_rows()
        yield from against_llama(1024, 8, 1, 3, device)
        yield physical_limit(2048, 8, 1, 3, device)
        return
    layers = 30 if device == "cuda" else 6
    for context, bar in ((2048, 5.0), (8192, 10.0), (16384, 20.0)):
        yield against_deepseek(context, 8, layers, 5 if context == 2048 else 3, device, bar)
    yield from cache_rows()
    yield from against_llama(4096, 32, layers, 5, device, 1.0)
    yield break_even(layers, device)
    yield physical_limit(4096, 32, layers, 7, device)
    yield physical_limit(128, 1, layers, 15, device)
