"""Loss-free balancing on batches of which half is padding: `python -m benchmarks.balancing [--steps 300]`.

A small model with experts learns a noisy successor function over 60 tokens. MaxVio = (max load - mean load) / mean
load of an expert layer, over the real tokens of the last 50 steps; 0 is perfect balance. "padding counted" is the
mistake that the token mask prevents: padding is routed too, and to few experts. The balance loss is DeepSeek-V3's,
by sequence, from the experts really used; with a small weight it joins loss-free balancing there.
"""

import argparse
import json

import torch

from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.model import moe_blocks, update_router_bias

LAST = 50


def batch(step: int, rows: int = 32, length: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `(rows, length)` of a noisy successor function, and their mask: the second half is padding."""
    generator = torch.Generator().manual_seed(step)
    columns = [torch.randint(60, (rows,), generator=generator)]
    for _ in range(length - 1):
        columns.append((columns[-1] * 7 + 3 + torch.randint(4, (rows,), generator=generator)) % 60)
    ids = torch.stack(columns, 1) + 1
    mask = torch.ones_like(ids)
    mask[:, length // 2 :] = 0
    return ids * mask, mask


# name: rate of the bias, whether padding is counted, weight of the balance loss
VARIANTS = {
    "no balancing": (0.0, False, 0.0),
    "balance loss, 1e-3": (0.0, False, 1e-3),
    "balance loss, 1e-2": (0.0, False, 1e-2),
    "loss-free": (1e-2, False, 0.0),
    "loss-free and balance loss, 1e-4": (1e-2, False, 1e-4),
    "loss-free, padding counted": (1e-2, True, 0.0),
}


def train(
    rate: float, count_padding: bool, steps: int, scoring_func: str = "sigmoid", seed: int = 0, alpha: float = 0.0
) -> dict:
    """Train for `steps`; returns the global MaxVio of the last `LAST` steps and their language loss (nats)."""
    torch.manual_seed(seed)
    config = R1LlamaConfig(
        vocab_size=61,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        first_k_dense_replace=1,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        scoring_func=scoring_func,
        initializer_range=0.2,
        router_bias_update_rate=rate,
        aux_loss_alpha=alpha,
    )
    model = R1LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loads, losses = [], []
    for step in range(steps):
        ids, mask = batch(step)
        loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loads.append(torch.stack([block.load for block in moe_blocks(model)]))
        losses.append(loss.item())
        if count_padding:  # what a router that ignores the mask would see
            for block in moe_blocks(model):
                block.load = None
            model(ids, labels=ids)
        update_router_bias(model)
    load_LE = sum(loads[-LAST:])
    max_vio = (load_LE.amax(-1) / load_LE.mean(-1) - 1).mean().item()
    return {"max_vio": max_vio, "loss": sum(losses[-LAST:]) / LAST}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", help="write the table here")
    arguments = parser.parse_args()
    rows = []
    for name, (rate, count_padding, alpha) in VARIANTS.items():
        rows.append({"balancing": name} | train(rate, count_padding, arguments.steps, alpha=alpha))
        print(f"{name:<34} MaxVio {rows[-1]['max_vio']:.3f}   language loss {rows[-1]['loss']:.3f}", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
