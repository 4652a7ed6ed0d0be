"""The classification heads, and what TRL's trainers ask of the backbone."""

import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from r1llama import R1LlamaForSequenceClassification, R1LlamaForTokenClassification

from .conftest import FULL, LINEAR, tiny_config, tiny_model, tokens

SWITCHES = {"kv_lora_rank": 12, "layer_types": [LINEAR, FULL, FULL], "num_experts": 4}


@pytest.mark.parametrize("head", [R1LlamaForSequenceClassification, R1LlamaForTokenClassification])
def test_classification_ignores_padding_and_trains(head):
    torch.manual_seed(0)
    model = head(tiny_config(**SWITCHES, num_labels=3)).eval()
    ids = tokens(1, 9)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long, device=ids.device), ids], 1)
    alone, with_padding = model(ids).logits, model(padded, attention_mask=(padded > 0).long()).logits
    assert_close(with_padding[:, -9:] if head is R1LlamaForTokenClassification else with_padding, alone)
    labels = torch.zeros(alone.shape[:-1], dtype=torch.long, device=ids.device)
    model(ids, labels=labels).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
def test_a_verifier_loads_where_r1llama_is_not_installed(tmp_path):
    R1LlamaForSequenceClassification(tiny_config(**SWITCHES, num_labels=1)).save_pretrained(tmp_path / "verifier")
    script = (
        "import sys; sys.modules['r1llama'] = None\n"
        "from transformers import AutoModelForSequenceClassification as Auto\n"
        f"model = Auto.from_pretrained({str(tmp_path / 'verifier')!r}, trust_remote_code=True)\n"
        "print(model.score.weight.sum().item())"
    )
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_trl_fused_head_gives_the_loss_of_forward():
    """TRL calls the backbone and projects by itself; what it computes must be the model's own loss."""
    from trl.trainer.utils import add_fused_lm_head

    model = tiny_model(**SWITCHES)
    ids = tokens(2, 14)
    expected = model(ids, labels=ids).loss
    add_fused_lm_head(model)
    assert_close(model(ids, labels=ids, fused_lm_head=True).loss, expected)


def test_trl_auxiliary_loss_reaches_a_softmax_router():
    from trl.trainer.utils import add_fused_lm_head

    model = tiny_model(**SWITCHES, scoring_func="softmax", router_aux_loss_coef=0.5, output_router_logits=True).train()
    ids = tokens(2, 14)
    language = model(ids, labels=ids).loss
    add_fused_lm_head(model)
    total = model(ids, labels=ids, fused_lm_head=True).loss
    assert total > language + 0.1
    total.backward()
    assert all(layer.mlp.gate.weight.grad.any() for layer in model.model.layers)
