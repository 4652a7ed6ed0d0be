"""Linear attention: prefill and training against softmax attention, and decoding at growing contexts.

The attention alone, from queries, keys and values to the output, with the heads of SmolLM2-135M (9 of 64, each with
its own key); then decoding through whole models.
"""

import torch
from torch.nn import functional as F
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.architecture.measure import Row, medians
from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.model.linear_functions import naive_hybrid_attention

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "vocab_size": 4096,
    "max_position_embeddings": 32768,
}
HEADS, HEAD = 9, 64
HYBRID = {"linear_feature_map": "hedgehog", "linear_window": 64}


def build(layers: int, device: str, **switches) -> R1LlamaForCausalLM:
    torch.manual_seed(0)
    config = R1LlamaConfig(**SHAPE, num_hidden_layers=layers, layer_types=["linear_attention"] * layers, **switches)
    return R1LlamaForCausalLM(config).to(device, torch.bfloat16 if device == "cuda" else torch.float32).eval()


def linear_by_definition(q, k, v, last: int):
    """The output for the last tokens alone, as the sums are written."""
    q, k, v = (x.double() for x in (q[:, :, -last:], k, v))
    weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril(k.shape[2] - last)
    return weights @ v / weights.sum(-1, keepdim=True)


def softmax(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def operands(tokens: int, device: str, requires_grad: bool = False):
    """q, k and v as projections leave them, in memory by token and not by head."""
    generator = torch.Generator(device).manual_seed(0)
    dtype, batch = (torch.bfloat16, 8) if device == "cuda" else (torch.float32, 1)
    return [
        torch.randn(batch, tokens, HEADS, HEAD, generator=generator, device=device, dtype=dtype)
        .transpose(1, 2)
        .requires_grad_(requires_grad)
        for _ in range(3)
    ]


def row(claim: str, ours, peer, repeats: int, device: str, bar: float | None, error: float) -> Row:
    seconds = medians({"ours": ours, "peer": peer}, repeats, device)
    note = f"{1e3 * seconds['ours']:.1f} and {1e3 * seconds['peer']:.1f} ms"
    return Row(claim, "sdpa", seconds["peer"] / seconds["ours"], bar, note=note, error=error)


@torch.no_grad()
def prefill(tokens: int, repeats: int, device: str, bar: float | None = None) -> Row:
    q, k, v = operands(tokens, device)
    attend = build(1, device).model.layers[0].self_attn.attend
    error = (attend(q, k, v)[0][:, :, -64:] - linear_by_definition(q, k, v, 64)).abs().max().item()
    assert error < 1e-4, error
    return row(
        f"linear prefill, {tokens} tokens",
        lambda: attend(q, k, v)[0],
        lambda: softmax(q, k, v),
        repeats,
        device,
        bar,
        error,
    )


@torch.no_grad()
def hybrid_prefill(tokens: int, repeats: int, device: str) -> Row:
    q, k, v = operands(tokens, device)
    model = build(1, device, **HYBRID).model
    layer, rotary = model.layers[0].self_attn, model.linear_rotary_emb(q, torch.arange(tokens, device=device)[None])
    start = [x[:1, :, :600].double() for x in (q, k, torch.cat([v, torch.ones_like(v[..., :1])], -1))]
    expected = naive_hybrid_attention(
        *apply_rotary_pos_emb(*start[:2], *(x[:, :600].double() for x in rotary)),
        start[2],
        layer.q_feature_map(start[0]),
        layer.k_feature_map(start[1]),
        layer.window,
        layer.scaling,
        layer.log_window_weight.double(),
    )
    error = (layer.attend(q, k, v, rotary)[0][:1, :, :600] - expected).abs().max().item()
    assert error < (1e-4 if device == "cpu" else 0.05), error
    return row(
        f"prefill with learned features and a softmax window of {layer.window}, {tokens} tokens",
        lambda: layer.attend(q, k, v, rotary)[0],
        lambda: softmax(q, k, v),
        repeats,
        device,
        None,
        error,
    )


def training(tokens: int, repeats: int, device: str) -> Row:
    """Forward and backward."""
    inputs = operands(tokens, device, requires_grad=True)
    attend = build(1, device).model.layers[0].self_attn.attend
    ours, naive = (
        torch.autograd.grad(out[:, :, -256:].double().square().sum(), inputs)
        for out in (attend(*inputs)[0], linear_by_definition(*inputs, 256))
    )
    error = max((a - b).abs().max().item() for a, b in zip(ours, naive, strict=True))
    assert error < (1e-4 if device == "cpu" else 0.05), error
    steps = (
        lambda: torch.autograd.grad(attend(*inputs)[0].sum(), inputs),
        lambda: torch.autograd.grad(softmax(*inputs).sum(), inputs),
    )
    return row(f"linear training, {tokens} tokens", *steps, repeats, device, None, error)


def flat_decode(contexts: tuple[int, ...], layers: int, repeats: int, device: str, **switches) -> Row:
    """The time of one token at the longest context over that at the shortest, through the whole model."""
    ours = build(layers, device, num_key_value_heads=3, **switches)
    llama = LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=layers, num_key_value_heads=3))
    llama = llama.to(device, ours.dtype).eval()
    ids = torch.randint(4096, (1, max(contexts) + 1), device=device)

    def stepper(model, context):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            for piece in ids[:, :context].split(1024, dim=1):
                model(piece, past_key_values=cache, logits_to_keep=1)

        @torch.no_grad()
        def step():
            return model(ids[:, context : context + 1], past_key_values=cache).logits

        return step

    steps = {context: stepper(ours, context) for context in contexts}
    with torch.no_grad():
        expected = ours(ids[:, : contexts[0] + 1], use_cache=False, logits_to_keep=1).logits
    error = (steps[contexts[0]]() - expected).abs().max().item()
    assert error < (1e-4 if device == "cpu" else 0.2), error
    steps["llama"] = stepper(llama, max(contexts))
    seconds = medians(steps, repeats, device)
    times = [seconds[context] for context in contexts]
    note = ", ".join(f"{context}: {1e3 * t:.2f} ms" for context, t in zip(contexts, times, strict=True))
    return Row(
        f"linear decode at {max(contexts)} over {min(contexts)} tokens{' with a window' if switches else ''}",
        "itself",
        max(times) / min(times),
        1.1,
        at_most=True,
        note=f"{note}; LlamaForCausalLM at {max(contexts)}: {1e3 * seconds['llama']:.2f} ms",
        error=error,
    )


def rows(quick: bool, device: str):
    if quick:
        yield prefill(2048, 7, device, 2.5)
        yield training(1024, 3, device)
        yield hybrid_prefill(2048, 3, device)
        yield flat_decode((256, 1024), 1, 61, device)
        return
    for tokens, repeats, bar in ((2048, 11, 2.5), (8192, 5, 7.0), (16384, 3, 10.0)):
        yield prefill(tokens, repeats, device, bar)
    for tokens in (2048, 8192):
        yield hybrid_prefill(tokens, 5, device)
        yield training(tokens, 3, device)
    yield flat_decode((1024, 4096, 16384), 2, 101, device)
    yield flat_decode((1024, 4096, 16384), 2, 101, device, **HYBRID)
