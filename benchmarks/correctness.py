"""The same weights in r1llama and in transformers' own models: `python -m benchmarks.correctness`.

Prints the largest absolute difference of the logits, over a forward pass and over cached decoding, in fp32. The peers'
logits have a standard deviation of about 1.
"""

import argparse
import json

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

from r1llama import R1LlamaConfig, R1LlamaForCausalLM

BASE = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.06,
    "eos_token_id": None,
}
LATENT = {
    "num_key_value_heads": 8,
    "kv_lora_rank": 64,
    "q_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "rope_interleave": True,
    "rms_norm_eps": 1e-6,
}
EXPERTS = {
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
}
YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 256,
    "rope_theta": 1e4,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


@torch.no_grad()
def differences(ours, peer, length: int = 300, new_tokens: int = 50) -> dict[str, float]:
    """Largest absolute differences of the logits of a forward pass, and of each step of greedy decoding."""
    ids = torch.randint(1000, (4, length), generator=torch.Generator().manual_seed(0)).to(peer.device)
    expected = peer(ids).logits
    options = {
        "max_new_tokens": new_tokens,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    decoded, peer_decoded = ours.generate(ids, **options), peer.generate(ids, **options)
    assert torch.equal(decoded.sequences, peer_decoded.sequences)
    steps = torch.stack(decoded.logits) - torch.stack(peer_decoded.logits)
    return {
        "forward": (ours(ids).logits - expected).abs().max().item(),
        "decoding": steps.abs().max().item(),
        "std of the logits": expected.std().item(),
    }


def llama(rope_parameters):
    torch.manual_seed(0)
    peer = LlamaForCausalLM(LlamaConfig(**BASE, num_key_value_heads=4, rope_parameters=rope_parameters)).eval()
    return peer, R1LlamaConfig(**BASE, num_key_value_heads=4, rope_parameters=rope_parameters)


def deepseek_v3(rope_parameters):
    torch.manual_seed(0)
    options = BASE | LATENT | EXPERTS
    peer = DeepseekV3ForCausalLM(
        DeepseekV3Config(**options, n_routed_experts=16, num_mtp_layers=0, rope_parameters=rope_parameters)
    ).eval()
    for name, buffer in peer.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.1)
    return peer, R1LlamaConfig(**options, num_experts=16, rope_parameters=rope_parameters)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="write the table here")
    arguments = parser.parse_args()
    rows = []
    for make in (llama, deepseek_v3):
        for rope_parameters in (None, YARN):
            peer, config = make(rope_parameters and dict(rope_parameters))
            ours = R1LlamaForCausalLM(config).eval()
            ours.load_state_dict(peer.state_dict())
            row = {"peer": type(peer).__name__, "positions": "YaRN" if rope_parameters else "RoPE"}
            row |= differences(ours.to(arguments.device), peer.to(arguments.device))
            rows.append(row)
            print(
                "  ".join(f"{k}: {v:.1e}" if isinstance(v, float) else f"{v:<22}" for k, v in row.items()), flush=True
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
