"""The losses beside the language loss, in a stage."""

import shutil

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from r1llama.training import sft
from r1llama.training.callbacks import AuxiliaryLosses

from .conftest import argv, assert_same_weights, json_lines


def test_accumulation_equals_the_big_batch(sft_recipe, expert_dir, tmp_path):
    """The balance loss is a mean over sequences: with its weight in each micro-batch these two runs are one."""
    shutil.copytree(expert_dir, tmp_path / "start")
    changes = {"aux_loss_alpha": 1.0, "router_z_loss_coef": 0.0}
    AutoConfig.from_pretrained(expert_dir, **changes).save_pretrained(tmp_path / "start")
    recipe = sft_recipe | {"model_name_or_path": str(tmp_path / "start"), "optim": "sgd", "learning_rate": 0.1}
    for name, rows, steps in (("big", 4, 1), ("accumulated", 1, 4)):
        recipe |= {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps, "max_steps": 2}
        sft.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / name)))
    assert_same_weights(tmp_path / "big", tmp_path / "accumulated", atol=1e-5, rtol=1e-4)
    big, accumulated = (json_lines(tmp_path / name / "metrics.jsonl")[0] for name in ("big", "accumulated"))
    assert abs(big["loss/balance"] - accumulated["loss/balance"]) < 1e-4
    assert abs(big["loss"] - accumulated["loss"]) < 1e-4


def test_fp16_is_refused(expert_dir, tmp_path):
    """Its loss scaling would not reach them."""
    config = AutoConfig.from_pretrained(expert_dir, router_z_loss_coef=0.01)
    arguments = TrainingArguments(output_dir=str(tmp_path))
    arguments.fp16 = True
    with pytest.raises(ValueError, match="Use bf16"):
        AuxiliaryLosses().on_train_begin(arguments, None, None, model=AutoModelForCausalLM.from_config(config))
