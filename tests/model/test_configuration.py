"""Every wrong config is refused with the field's name and a cure."""

import pytest
from huggingface_hub.errors import StrictDataclassError

from r1llama import R1LlamaConfig

from .conftest import FULL, LINEAR, MLP, tiny_config

LATENT = {"kv_lora_rank": 8}
YARN = {"rope_type": "yarn", "factor": 4.0}
WRONG = [
    ({"num_attention_heads": 0}, "num_attention_heads", "1 or more"),
    ({"num_hidden_layers": 0}, "num_hidden_layers", "1 or more"),
    ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads", "divisors"),
    ({"head_dim": 7}, "head_dim", "even"),
    ({"layer_types": [FULL]}, "layer_types", "one entry a layer"),
    ({"layer_types": [FULL, LINEAR, "sparse_attention"]}, "layer_types", "use full_attention"),
    ({"linear_feature_map": "gelu"}, "linear_feature_map", "use 'elu', 'relu'"),
    ({"linear_feature_map": "relu", "linear_use_rope": True}, "linear_use_rope", "'elu'"),
    (
        {"linear_feature_map": "hedgehog", "linear_use_rope": True, "layer_types": [LINEAR] * 3},
        "linear_use_rope",
        "false",
    ),
    ({"linear_window": 4, "linear_use_rope": True, "layer_types": [LINEAR] * 3}, "linear_use_rope", "to false"),
    ({"linear_window": 0, "layer_types": [LINEAR] * 3}, "linear_window", "1 or more"),
    ({"linear_window": 4}, "linear_window", "layer_types"),
    ({"linear_decay": True}, "linear_decay", "layer_types"),
    ({"kv_lora_rank": 0}, "kv_lora_rank", "1 or more"),
    ({"kv_lora_rank": -4}, "kv_lora_rank", "1 or more"),
    (LATENT | {"q_lora_rank": 0}, "q_lora_rank", "1 or more"),
    (LATENT | {"qk_rope_head_dim": 5}, "qk_rope_head_dim", "even"),
    (LATENT | {"qk_nope_head_dim": 0}, "qk_nope_head_dim", "1 or more"),
    (LATENT | {"v_head_dim": 0}, "v_head_dim", "1 or more"),
    ({"num_experts": -1}, "num_experts", "1 or more"),
    ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok", "lower"),
    ({"num_experts": 4, "num_experts_per_tok": 0}, "num_experts_per_tok", "1 or more"),
    ({"num_experts": 6, "n_group": 4}, "n_group", "divisors"),
    ({"num_experts": 4, "n_group": 4, "topk_group": 2}, "n_group", "or less"),
    ({"num_experts": 8, "n_group": 2, "topk_group": 3}, "topk_group", "lower"),
    ({"num_experts": 8, "n_group": 4, "topk_group": 1, "num_experts_per_tok": 3}, "num_experts_per_tok", "lower"),
    ({"num_experts": 4, "moe_intermediate_size": 0}, "moe_intermediate_size", "1 or more"),
    ({"num_experts": 4, "n_shared_experts": -1}, "n_shared_experts", "0 or more"),
    ({"num_experts": 4, "router_bias_update_rate": -1.0}, "router_bias_update_rate", "0 or more"),
    ({"num_experts": 4, "scoring_func": "tanh"}, "scoring_func", "use 'sigmoid'"),
    ({"num_experts": 4, "router_aux_loss_coef": 0.01}, "router_aux_loss_coef", "router_bias_update_rate"),
    ({"num_mtp_layers": -1}, "num_mtp_layers", "0 (off)"),
    ({"num_mtp_layers": 4}, "num_mtp_layers", "up to num_hidden_layers"),
    ({"mtp_loss_coef": -0.1}, "mtp_loss_coef", "0 or more"),
    ({"rope_parameters": YARN}, "original_max_position_embeddings", "context length"),
    ({"rope_scaling": YARN}, "original_max_position_embeddings", "context length"),
]


@pytest.mark.parametrize(("switches", "field", "cure"), WRONG, ids=[f"{i}-{case[1]}" for i, case in enumerate(WRONG)])
def test_wrong_config_is_refused(switches, field, cure):
    with pytest.raises((ValueError, StrictDataclassError)) as error:
        tiny_config(**switches)
    assert field in str(error.value)
    assert cure in str(error.value)


def test_defaults_are_llama():
    config = R1LlamaConfig()
    assert config.kv_lora_rank is None
    assert config.num_experts == 0
    assert set(config.layer_types) == {FULL}
    assert config.num_hidden_layers == 32


def test_round_trip(tmp_path):
    config = tiny_config(**LATENT, **MLP["experts"], layer_types=[FULL, LINEAR, FULL])
    config.save_pretrained(tmp_path)
    assert R1LlamaConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


def test_yarn_under_latent_attention_scales_the_softmax():
    yarn = YARN | {"original_max_position_embeddings": 32}
    assert tiny_config(**LATENT, rope_parameters=dict(yarn)).rope_parameters["mscale_all_dim"] == 1.0
    assert "mscale_all_dim" not in tiny_config(rope_parameters=dict(yarn)).rope_parameters
