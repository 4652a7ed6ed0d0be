"""Tiny models of every architecture that vLLM serves, and what transformers makes of them."""

import torch

from r1llama import R1LlamaConfig, R1LlamaForCausalLM

BASE = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,  # wide enough for a wrong mask to move the logits
}
FULL, LINEAR = "full_attention", "linear_attention"
YARN = {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}
LATENT = {"kv_lora_rank": 24, "q_lora_rank": 20, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 20}
WIDE_LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 24}
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
GROUPS = {"n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5}
WINDOW = {"linear_feature_map": "hedgehog", "linear_decay": True, "linear_window": 7}
MODELS = {
    "grouped": {},
    "grouped-tied": {"tie_word_embeddings": True},
    "grouped-yarn": YARN,
    "latent": LATENT,
    "latent-yarn": LATENT | YARN | {"q_lora_rank": None, "rope_interleave": True},
    "wide-latent": WIDE_LATENT | {"q_lora_rank": 20},
    "wide-latent-yarn": WIDE_LATENT | YARN,
    "experts": EXPERTS,
    "experts-groups": EXPERTS | GROUPS,
    "experts-softmax": EXPERTS | {"scoring_func": "softmax", "norm_topk_prob": False, "n_shared_experts": 0},
    "latent-experts-mtp": LATENT | EXPERTS | {"num_mtp_layers": 1},
    "wide-latent-experts": WIDE_LATENT | EXPERTS,
    "linear": {"layer_types": [LINEAR] * 3},
    "linear-rope": {"layer_types": [LINEAR] * 3, "linear_use_rope": True},
    "linear-window": {"layer_types": [LINEAR] * 3} | WINDOW,
    "linear-experts": {"layer_types": [LINEAR] * 3} | EXPERTS,
    "hybrid": {"layer_types": [FULL, LINEAR, LINEAR], "linear_feature_map": "relu", "linear_decay": True},
    "hybrid-window-yarn": {"layer_types": [FULL, LINEAR, LINEAR]} | WINDOW | YARN,
    "everything": LATENT | EXPERTS | YARN | {"layer_types": [LINEAR, FULL, LINEAR], "linear_use_rope": True},
    "everything-wide": WIDE_LATENT | EXPERTS | {"layer_types": [LINEAR, FULL, LINEAR]},
}
PROMPT_LENGTHS = (1, 2, 3, 5, 7, 9, 12, 15, 17, 20, 25, 31, 40, 50, 64, 90)
NEW_TOKENS = 64


def tiny_model(**switches):
    torch.manual_seed(0)
    model = R1LlamaForCausalLM(R1LlamaConfig(**BASE | switches))
    for name, buffer in model.named_buffers():  # a trained router
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.1)
    return model.eval()


def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, BASE["vocab_size"], (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


@torch.no_grad()
def assert_greedy(model, prompt, tokens, logprobs):
    """Each token is the one that transformers holds most likely after those before it, as likely as it does: by
    induction, the text is what `generate` writes."""
    logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    assert tokens == logits.argmax(-1).tolist()
    expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=1e-4)
