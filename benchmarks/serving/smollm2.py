"""SmolLM2-135M-Instruct with latent attention, for timing: its cache is 8 times smaller, and so is what it knows.

The keys and values of a layer become one latent of rank 32 by a joint SVD, and their slowest-changing share of the
positions one rotary key of 16 channels for all heads (the partial RoPE of MHA2MLA, arXiv:2502.14837). Nothing is
trained afterwards, so it writes nonsense; how fast it writes does not depend on that.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from r1llama import R1LlamaConfig, R1LlamaForCausalLM

FOLDER = Path("models/smollm2-135m-instruct")
RANK, ROPE = 32, 16


def smollm2(device: str) -> LlamaForCausalLM:
    if not FOLDER.exists():
        raise SystemExit(f"{FOLDER} is missing: python examples/offline_model.py --output {FOLDER}")
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).to(device).eval()


def rotary_channels(head_dim: int) -> torch.Tensor:
    """Channels of a head of 64 that turn as those of a head of `ROPE`: both halves of every fourth pair."""
    first = torch.arange(0, head_dim // 2, head_dim // ROPE)
    return torch.cat([first, first + head_dim // 2])


@torch.no_grad()
def to_latent(llama: LlamaForCausalLM) -> R1LlamaForCausalLM:
    """The same model with latent attention; heads keep their width, so the softmax keeps its scale."""
    old = llama.config
    head, heads, groups = old.head_dim, old.num_attention_heads, old.num_key_value_heads
    fields = old.to_dict() | {
        "kv_lora_rank": RANK,
        "qk_rope_head_dim": ROPE,
        "qk_nope_head_dim": head - ROPE,
        "v_head_dim": head,
        "dtype": "float32",
    }
    for name in ("model_type", "architectures", "_name_or_path", "transformers_version"):
        fields.pop(name, None)
    model = R1LlamaForCausalLM(R1LlamaConfig(**fields)).eval()
    model.load_state_dict(llama.state_dict(), strict=False)

    rotary = rotary_channels(head)
    nope = torch.tensor([i for i in range(head) if i not in rotary])
    for layer, source in zip(model.model.layers, llama.model.layers, strict=True):
        new, old_attention = layer.self_attn, source.self_attn
        query = old_attention.q_proj.weight.unflatten(0, (heads, head))
        key, value = (p.weight.unflatten(0, (groups, head)) for p in (old_attention.k_proj, old_attention.v_proj))
        new.q_proj.weight.copy_(query[:, torch.cat([nope, rotary])].flatten(0, 1))

        # What the attention reads: normalised, then scaled channel by channel
        scale = source.input_layernorm.weight
        up, sizes, down = torch.linalg.svd(torch.cat([key[:, nope], value], dim=1).flatten(0, 1) * scale)
        up, sizes, down = up[:, :RANK], sizes[:RANK], down[:RANK] / scale
        new.kv_a_proj_with_mqa.weight.copy_(torch.cat([down * sizes[:, None], key[:, rotary].mean(0)]))
        new.kv_a_layernorm.weight.fill_(
            sizes.square().mean().sqrt()
        )  # the usual size of a latent, which it divides by
        up = up.unflatten(0, (groups, -1)).repeat_interleave(heads // groups, dim=0)
        new.kv_b_proj.weight.copy_(up.flatten(0, 1))
        new.o_proj.weight.copy_(old_attention.o_proj.weight)
    return model.to(llama.device)
