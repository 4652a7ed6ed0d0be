"""Decoding with multi-token prediction: tokens a forward pass of the main model, and speed, against plain greedy.

A small byte model learns Python's own library for two minutes, with one layer of prediction. What so small a model
writes repeats itself, which is easy to draft; how often drafts are accepted along the library's own text is stated
too.
"""

import os
import tempfile
from pathlib import Path

import torch

from benchmarks.architecture.measure import Row, medians
from r1llama import R1LlamaConfig, R1LlamaForCausalLM

CONFIG = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "kv_lora_rank": 32,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": True,
    "num_mtp_layers": 1,
}
BATCH, LENGTH = 16, 96


def library() -> torch.Tensor:
    """The bytes of Python's library, without its packages."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in files)), dtype=torch.uint8)


def trained(text: torch.Tensor, steps: int, device: str) -> R1LlamaForCausalLM:
    torch.manual_seed(0)
    model = R1LlamaForCausalLM(R1LlamaConfig(**CONFIG)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        starts = torch.randint(len(text) - LENGTH, (BATCH,))
        ids = torch.stack([text[i : i + LENGTH] for i in starts]).long().to(device)
        model(ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def acceptance(model: R1LlamaForCausalLM, ids: torch.Tensor) -> float:
    """How often the layer names the token that the main model will, one step later, find likeliest."""
    output = model.model(ids)
    embeds = model.model.embed_tokens(ids[:, 1:])
    positions = torch.arange(1, ids.shape[1], device=ids.device)[None]
    drafts = model.mtp.layers[0](
        embeds,
        output.last_hidden_state[:, :-1],
        attention_mask=None,
        position_ids=positions,
        position_embeddings=model.model.rotary_emb(embeds, positions),
        past_key_values=None,
    )
    named, likeliest = (model.lm_head(x).argmax(-1) for x in (drafts, output.last_hidden_state[:, 1:]))
    return (named == likeliest).float().mean().item()


def rows(quick: bool, device: str):
    text = library()
    text, held_out = text[:-100_000], text[-100_000:]
    steps, num_prompts, num_tokens = (5, 1, 16) if quick else (120, 4, 64)
    model = trained(text, steps, device)
    prompts = [held_out[i : i + 64].long()[None].to(device) for i in range(0, 20_000 * num_prompts, 20_000)]
    options = {"max_new_tokens": num_tokens, "do_sample": False, "pad_token_id": 0}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model = R1LlamaForCausalLM.from_pretrained(folder).to(device).eval()
        forwards = 0

        def count(*args):
            nonlocal forwards
            forwards += 1

        plain = [model.generate(prompt, **options) for prompt in prompts]
        handle = model.model.register_forward_pre_hook(count)
        drafted = [model.generate(prompt, use_mtp=True, **options) for prompt in prompts]
        handle.remove()
        assert all(torch.equal(one, other) for one, other in zip(plain, drafted, strict=True))
        seconds = medians(
            {
                "plain": lambda: [model.generate(prompt, **options) for prompt in prompts],
                "mtp": lambda: [model.generate(prompt, use_mtp=True, **options) for prompt in prompts],
            },
            1 if quick else 3,
            device,
        )
    tokens = num_tokens * num_prompts
    claim = f"generate(use_mtp=True), 1 layer after 12, {steps} steps on Python's library"
    yield Row(
        f"{claim}: tokens a forward pass", "greedy", tokens / forwards, unit="tokens", note="at most 2", error=0.0
    )
    share = acceptance(model, held_out[: 2048 if quick else 32_768].long().view(-1, 256).to(device))
    yield Row(f"{claim}: drafts accepted along held-out text", "greedy", share, unit="of 1")
    yield Row(
        f"{claim}: speed",
        "greedy",
        seconds["plain"] / seconds["mtp"],
        note=f"{tokens / seconds['mtp']:.0f} against {tokens / seconds['plain']:.0f} tokens/s, batch 1",
    )
