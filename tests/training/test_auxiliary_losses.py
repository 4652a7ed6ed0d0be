"""The losses beside the language loss, in a stage."""

import shutil

from transformers import AutoConfig

from r1llama.training import sft

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
