"""LoRA with the targets of a config: complete, trained, merged and saved without a difference."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.testing import assert_close

from r1llama.model import lora_targets

from .conftest import ATTENTION, MLP, tiny_config, tiny_model, tokens

CASES = {f"{a}-{m}": ATTENTION[a] | MLP[m] for a in ("grouped", "latent", "linear", "latent+linear") for m in MLP}


@pytest.fixture(params=CASES, ids=str)
def adapted(request):
    """A model, and one with adapters that are no identity."""
    model = tiny_model(**CASES[request.param])
    config = LoraConfig(**lora_targets(model.config), r=2, task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(1)
    return tiny_model(**CASES[request.param]), get_peft_model(model, config)


def test_every_projection_and_nothing_else_is_adapted(adapted):
    model, peft_model = adapted
    expected = {name for name, module in model.model.named_modules() if isinstance(module, nn.Linear)}
    expected |= {name for name, p in model.model.named_parameters() if p.dim() == 3}  # experts
    backbone = peft_model.base_model.model.model
    reached = set()
    for name, module in backbone.named_modules():
        if hasattr(module, "lora_A"):
            parameter = getattr(module, "parameter_name", None)
            name = name.replace(".base_layer", "")
            reached.add(name if parameter is None else f"{name}.{parameter}")
    assert reached == expected
    assert not any("lora" in name for name, _ in peft_model.named_parameters() if "gate.weight" in name)


def test_all_adapters_learn_and_nothing_else(adapted):
    _, model = adapted
    ids = tokens(8, 16)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None and p.grad.abs().max() > 0) == ("lora_" in name), name


@torch.no_grad()
def test_merged_and_reloaded_equal_adapted(adapted, tmp_path):
    base, model = adapted
    ids = tokens(2, 9)
    expected = model.eval()(ids).logits
    assert (expected - base(ids).logits).abs().max() > 1e-2
    model.save_pretrained(tmp_path)
    assert_close(PeftModel.from_pretrained(base, tmp_path)(ids).logits, expected, atol=1e-4, rtol=1e-3)
    assert_close(model.merge_and_unload()(ids).logits, expected, atol=1e-4, rtol=1e-3)


def test_dense_first_layers_only():
    targets = lora_targets(tiny_config(num_experts=4, first_k_dense_replace=3))
    assert "target_parameters" not in targets
