"""The counts are those of real models and of the caches that they fill."""

import json

import pytest
import torch
from transformers import DeepseekV3Config, LlamaConfig

from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.model.sizes import main, sizes

from .conftest import tiny_config, tokens


def numbers_in(cache):
    held = []
    for layer in cache.layers:
        held += [getattr(layer, "keys", None), getattr(layer, "values", None)]
        for states in (getattr(layer, "recurrent_states", {}), getattr(layer, "conv_states", {})):
            held += states.values()
    return sum(tensor.numel() for tensor in held if tensor is not None)


def test_counts_and_cache_of_every_combination(switches):
    config = tiny_config(**switches)
    model, found = R1LlamaForCausalLM(config).eval(), sizes(config)
    assert found.total == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        short, long = (numbers_in(model(tokens(1, n), use_cache=True).past_key_values) for n in (20, 30))
    assert long - short == 10 * found.cache_values
    assert short == 20 * found.cache_values + found.cache_state


@pytest.mark.parametrize("shared", [0, 1])
def test_a_token_passes_what_gets_a_gradient(shared):
    """One token: the experts that it is not routed to are the parameters without a gradient, with the embeddings of
    other tokens."""
    config = tiny_config(num_experts=6, num_experts_per_tok=2, n_shared_experts=shared, moe_intermediate_size=16)
    model, found = R1LlamaForCausalLM(config), sizes(config)
    model(tokens(1, 1)).logits.sum().backward()
    passed = 0
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            passed += sum(e.numel() for e, grad in zip(parameter, parameter.grad, strict=True) if grad.any())
        else:
            passed += parameter.numel()
    assert passed == found.active < found.total


def test_tied_tables_and_layers_of_multi_token_prediction():
    plain = sizes(tiny_config())
    table = 61 * 32
    assert plain.embedding == 2 * table
    tied = sizes(tiny_config(tie_word_embeddings=True))
    assert (tied.embedding, tied.total) == (table, plain.total - table)
    drafting = sizes(tiny_config(num_mtp_layers=1))
    assert (drafting.total, drafting.active) == (plain.total, plain.active)
    assert drafting.multi_token > 0 == plain.multi_token


def test_other_architectures():
    small = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 4}
    assert sizes(LlamaConfig(**small)).total == sizes(R1LlamaConfig(**small)).total
    experts = {"moe_intermediate_size": 16, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 1}
    found = sizes(DeepseekV3Config(**small, **experts, topk_group=1, num_hidden_layers=2, first_k_dense_replace=1))
    assert found.total - found.active == 4 * 3 * 32 * 16
    assert found.cache_values is None


def test_command(tmp_path, capsys):
    config = tiny_config(num_experts=4)
    config.save_pretrained(tmp_path)
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    main([str(tmp_path / "config.json"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert f"{found['total']:,}" in shown
    assert f"{found['active']:,}" in shown
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nothing.json")])
