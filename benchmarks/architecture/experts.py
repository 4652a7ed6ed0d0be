"""Experts: a training step against a dense Llama and against transformers' DeepseekV3MoE, prefill, decode, balancing.

The step is a forward and a backward pass of the whole model, with its attention, norms and head, from zeroed
gradients. The dense model computes as much for each token: its MLP is as wide as the experts that a token passes. The
peer is the same model with DeepseekV3MoE in the place of every expert block, with the same weights and routing.
"""

import copy

import torch
from torch import nn
from transformers import DeepseekV3Config, LlamaConfig, LlamaForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from benchmarks import balancing
from benchmarks.architecture.measure import Row, medians
from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.model.experts import R1LlamaExperts

BACKENDS = ("grouped_mm", "eager")  # batched_mm copies K matrices for each token: gigabytes a layer in training
TOP = 4


def shape(quick: bool, device: str) -> tuple[dict, int, tuple[int, int]]:
    """Fields that all models share, experts, and the batch."""
    hidden, width, layers, experts, batch = 512, 256, 3, 16, (4, 256)
    if device == "cuda":
        hidden, width, layers, experts, batch = 2048, 1024, 8, 64, (8, 2048)
    elif quick:
        hidden, width, layers, experts, batch = 256, 128, 2, 16, (2, 256)
    base = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": (TOP + 1) * width,
        "vocab_size": 2048,
        "initializer_range": 0.05,
    }
    return base, experts, batch


def with_peer_blocks(model: R1LlamaForCausalLM) -> R1LlamaForCausalLM:
    """A copy of `model` whose expert blocks are transformers'."""
    peer, config = copy.deepcopy(model), model.config
    peer_config = DeepseekV3Config(
        hidden_size=config.hidden_size,
        moe_intermediate_size=config.moe_intermediate_size,
        num_local_experts=config.num_experts,
        n_routed_experts=config.num_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        n_shared_experts=config.n_shared_experts,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
    )
    for layer in peer.model.layers:
        block = DeepseekV3MoE(peer_config)
        block.load_state_dict(layer.mlp.state_dict())
        layer.mlp = block.to(next(model.parameters()))
    return peer


def set_backend(model: nn.Module, name: str) -> None:
    model.model.layers[0].mlp.experts.config._experts_implementation_internal = name


def difference(one: nn.Module, other: nn.Module, ids: torch.Tensor) -> float:
    """Largest difference of loss and gradients; bf16 is left out, where one rounded score sends a token elsewhere."""
    losses = []
    for model in (one, other):
        model.zero_grad()
        losses.append(model(ids, labels=ids).loss)
        losses[-1].backward()
    theirs = dict(other.named_parameters())
    error = max((p.grad - theirs[name].grad).abs().max().item() for name, p in one.named_parameters())
    error = max(error, abs(losses[0].item() - losses[1].item()))
    assert error < 1e-4 or ids.is_cuda, error
    return error


def rows(quick: bool, device: str):
    base, experts, batch = shape(quick, device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    width = base["intermediate_size"] // (TOP + 1)
    fields = {
        "num_experts": experts,
        "num_experts_per_tok": TOP,
        "n_shared_experts": 1,
        "moe_intermediate_size": width,
    }
    model = R1LlamaForCausalLM(R1LlamaConfig(**base, **fields)).to(device, dtype).train()
    dense = LlamaForCausalLM(LlamaConfig(**base)).to(device, dtype).train()
    ids = torch.randint(base["vocab_size"], batch, device=device)
    peer = with_peer_blocks(model)
    set_backend(peer, "grouped_mm")
    error = difference(model, peer, ids)

    def step(model, backend=None):
        if backend:
            set_backend(model, backend)
        model.zero_grad()
        model(ids, labels=ids).loss.backward()

    steps = {"ours": lambda: step(model), "dense": lambda: step(dense)}
    steps |= {name: lambda name=name: step(peer, name) for name in BACKENDS}
    seconds = medians(steps, 2 if quick else 9, device)
    note = ", ".join(f"{name} {1000 * t:.0f}" for name, t in seconds.items()) + " ms"
    size = f"hidden {base['hidden_size']}, {TOP} of {experts} experts of {width}, {ids.numel()} tokens"
    best = min(BACKENDS, key=seconds.get)
    yield Row(
        f"MoE training step over dense, {size}",
        "LlamaForCausalLM, equal active parameters",
        seconds["ours"] / seconds["dense"],
        1.3,
        at_most=True,
        note=note,
    )
    yield Row(
        f"MoE training step over its peer's, {size}",
        f"DeepseekV3MoE, {best}",
        seconds["ours"] / seconds[best],
        1.0,
        at_most=True,
        note=note,
        error=error,
    )

    def prefill(model, backend=None):
        if backend:
            set_backend(model, backend)
        with torch.no_grad():
            model(ids)

    steps = {"ours": lambda: prefill(model)}
    steps |= {name: lambda name=name: prefill(peer, name) for name in BACKENDS}
    seconds = medians(steps, 2 if quick else 9, device)
    best = min(BACKENDS, key=seconds.get)
    yield Row(
        f"MoE prefill over its peer's, {size}",
        f"DeepseekV3MoE, {best}",
        seconds["ours"] / seconds[best],
        note=", ".join(f"{name} {1000 * t:.0f}" for name, t in seconds.items()) + " ms",
    )
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in (1,) if quick else (1, 8, 32):
            yield decode(base["hidden_size"], width, experts, tokens, dtype, device, 3 if quick else 30)
    yield from balance_rows(quick)


@torch.no_grad()
def decode(hidden, width, experts, tokens, dtype, device, repeats) -> Row:
    """The experts alone; six layers of them, so that their weights are read from memory as in a model."""
    config = R1LlamaConfig(
        hidden_size=hidden, moe_intermediate_size=width, num_experts=experts, num_experts_per_tok=TOP
    )
    layers = [R1LlamaExperts(config).to(device, dtype) for _ in range(6)]
    for layer in layers:
        for p in layer.parameters():
            p.normal_(std=0.05)
    x = torch.randn(tokens, hidden, device=device, dtype=dtype)
    ids = torch.rand(tokens, experts, device=device).topk(TOP, -1).indices
    weights = torch.rand(tokens, TOP, device=device)

    def run(name):
        config._experts_implementation_internal = name
        return torch.stack([layer(x, ids, weights) for layer in layers])

    error = (run("r1llama") - run("eager")).abs().max().item()
    assert error < (1e-4 if dtype == torch.float32 else 0.1), error
    names = ("r1llama", "grouped_mm", "batched_mm", "eager")
    seconds = medians({name: lambda name=name: run(name) for name in names}, repeats, device)
    best = min(names[1:], key=seconds.get)
    return Row(
        f"experts, decode of {tokens} token{'s' * (tokens > 1)}, {str(dtype).removeprefix('torch.')}",
        f"{best}, transformers' best",
        seconds["r1llama"] / seconds[best],
        at_most=True,
        note=", ".join(f"{name} {1e6 * t / len(layers):.0f}" for name, t in seconds.items()) + " us a layer",
        error=error,
    )


def balance_rows(quick: bool):
    """A small model, on the CPU: see `benchmarks.balancing`."""
    names = ["no balancing", "balance loss, 1e-2", "loss-free"]
    steps, bar = (20, None) if quick else (300, 0.05)
    results = {}
    for name in names[::2] if quick else names:
        rate, count_padding, alpha = balancing.VARIANTS[name]
        results[name] = balancing.train(rate, count_padding, steps, alpha=alpha)
    note = ", ".join(f"{name} {result['max_vio']:.3f}" for name, result in results.items())
    claim = f"{steps} steps, half the tokens padding, loss-free balancing"
    ours, none = results["loss-free"], results["no balancing"]
    yield Row(f"{claim}: MaxVio", "no balancing, balance loss", ours["max_vio"], bar, at_most=True, unit="", note=note)
    yield Row(
        f"{claim}: language loss above that without",
        "no balancing",
        ours["loss"] - none["loss"],
        0.005,
        at_most=True,
        unit="nats",
        note=", ".join(f"{name} {result['loss']:.4f}" for name, result in results.items()),
    )
