"""Every YAML under recipes/ means something to the tool that reads it."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from trl import GRPOConfig, ModelConfig, SFTConfig

from r1llama.training import grpo, recipe, stage
from r1llama.training.checks import check_values

ROOT = Path(__file__).parents[2]
STAGES = {"sft": (stage.StageArguments, SFTConfig, ModelConfig), "grpo": (grpo.GRPOArguments, GRPOConfig, ModelConfig)}
RECIPES = [path for path in sorted(ROOT.glob("recipes/*/*.yaml")) if path.parent.name != "accelerate"]


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem.partition("_")[0] in STAGES], ids=name)
def test_stage_recipes(path, tmp_path):
    kinds = STAGES[path.stem.partition("_")[0]]
    paths = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", str(tmp_path)]  # the user's, maybe
    recipe.read(kinds, ["--config", str(path), *paths], check_values)


@pytest.mark.parametrize("path", [ROOT / "zero3.yaml", *sorted(ROOT.glob("recipes/accelerate/*.yaml"))], ids=name)
def test_launch_configs(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1


def test_zero3_on_cpus_differs_from_zero3_only_in_the_machine():
    top, cpu = (load_config_from_file(str(ROOT / p)) for p in ("zero3.yaml", "recipes/accelerate/zero3_cpu2.yaml"))
    assert cpu.deepspeed_config.items() <= top.deepspeed_config.items()
    assert (cpu.use_cpu, cpu.num_processes) == (True, 2)
