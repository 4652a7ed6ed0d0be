"""The callback moves the bias where it will be kept, and measures everywhere."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerState, TrainingArguments

from r1llama.model import moe_blocks
from r1llama.training import RouterBalancing
from tests.model.conftest import tiny_model, tokens


@pytest.mark.parametrize("case", ["full", "adapters"])
def test_moves_the_bias_only_where_it_is_kept(case, tmp_path):
    model = tiny_model(num_experts=4).train()
    if case == "adapters":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    ids = tokens(2, 9)
    model(ids, labels=ids).loss.backward()
    before = [block.gate.e_score_correction_bias.clone() for block in moe_blocks(model)]

    callback = RouterBalancing()
    callback.on_pre_optimizer_step(args, TrainerState(), None, model=model)
    moved = [
        not torch.equal(old, block.gate.e_score_correction_bias)
        for old, block in zip(before, moe_blocks(model), strict=True)
    ]
    assert all(moved) if case == "full" else not any(moved)
    assert callback.measured[0]["router/max_vio"] > 0
