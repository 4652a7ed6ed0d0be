"""Every YAML under recipes/ means something to the tool that reads it."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from trl import GRPOConfig, ModelConfig, SFTConfig

from r1llama.training import grpo, recipe, stage
from r1llama.training.checks import check_values

from .conftest import argv

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


SFT = {"output_dir": "out", "max_steps": 100, "learning_rate": 1e-3}


def read(path, values, *more):
    return recipe.read(STAGES["sft"], [*argv(values, path / "r.yaml"), *more])[-1]


def test_smoke_values_replace_the_recipes_and_the_command_line_wins(tmp_path):
    values = SFT | {"smoke": {"max_steps": 2, "learning_rate": "5e-4"}}
    real, trial = read(tmp_path, values), read(tmp_path, values, "--smoke")
    assert {key: real[key] for key in SFT} == SFT
    assert {key: trial[key] for key in SFT} == {"output_dir": "out-smoke", "max_steps": 2, "learning_rate": 5e-4}
    assert {key for key in real if real[key] != trial[key]} == SFT.keys()
    last = read(tmp_path, values, "--max_steps", "3", "--smoke", "--output_dir", "mine")
    assert (last["max_steps"], last["output_dir"], last["learning_rate"]) == (3, "mine", 5e-4)
    named = read(tmp_path, SFT | {"smoke": {"output_dir": "elsewhere"}}, "--smoke")
    assert (named["output_dir"], named["max_steps"]) == ("elsewhere", 100)


@pytest.mark.parametrize(
    ("smoke", "words", "said"),
    [
        ({"max_step": 2}, [], "`smoke`: unknown key `max_step`. Did you mean `max_steps`?"),
        ({"max_steps": "two"}, [], "`smoke`: `max_steps: two` is no int"),
        ({"warmup_ratio": 0.1}, [], "`smoke`: `warmup_ratio` is gone"),
        ([2], [], "`smoke` must hold `key: value` lines, not a list"),
        (None, ["--smoke"], "r.yaml has no `smoke:` values"),
    ],
)
def test_smoke_values_are_checked_whether_they_are_used_or_not(smoke, words, said, tmp_path):
    with pytest.raises(recipe.RecipeError) as caught:
        read(tmp_path, SFT | {"smoke": smoke}, *words)
    assert said in str(caught.value)


def test_smoke_needs_a_recipe():
    with pytest.raises(recipe.RecipeError, match="--config"):
        recipe.read(STAGES["sft"], ["--smoke"])
