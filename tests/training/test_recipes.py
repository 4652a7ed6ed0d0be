"""Every YAML under recipes/ means something to the tool that reads it."""

import importlib.util
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoTokenizer
from trl import GRPOConfig, ModelConfig, SFTConfig

from r1llama.cli import COMMANDS, main
from r1llama.training import improve, recipe, stage
from r1llama.training.checks import check_values
from r1llama.training.grpo import GRPOArguments
from r1llama.training.sampling import Sampling
from r1llama.training.verifier import VerifierArguments, VerifierConfig

from .conftest import argv

ROOT = Path(__file__).parents[2]
KINDS = {
    "sft": (stage.StageArguments, SFTConfig, ModelConfig),
    "grpo": (GRPOArguments, GRPOConfig, ModelConfig),
    "improve": (improve.ImproveArguments,),
    "verifier": (VerifierArguments, VerifierConfig, ModelConfig),
}
RECIPES = [path for path in sorted(ROOT.glob("recipes/*/*.yaml")) if path.parent.name != "accelerate"]
COMPLETE = [path for path in RECIPES if "output_dir:" in path.read_text(encoding="utf-8")]  # examples complete others


def name(path):
    return str(path.relative_to(ROOT))


class Read(Exception):
    """Raised in the place of what a stage does with its recipe."""


@pytest.mark.parametrize("size", ["real", "smoke"])
@pytest.mark.parametrize("path", COMPLETE, ids=name)
def test_every_recipe_means_something_to_its_stage(path, size, monkeypatch):
    """The first word of the file's name is the stage."""
    resolve = recipe.read

    def read(*args, **keywords):
        raise Read(resolve(*args, **keywords))

    monkeypatch.setattr(recipe, "read", read)
    words = ["--config", str(path), *(["--smoke"] if size == "smoke" else [])]
    with pytest.raises(Read) as ended:
        importlib.import_module(COMMANDS[path.stem.partition("_")[0]][0]).main(words)
    values = ended.value.args[0][-1]
    assert values["output_dir"].endswith("-smoke") == (size == "smoke")


@pytest.fixture(scope="module")
def run():
    """recipes/smoke/run.py"""
    spec = importlib.util.spec_from_file_location("run", ROOT / "recipes" / "smoke" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_smoke_runs_chain_and_read_nothing_that_is_not_here(run):
    """Each comes after those that it reads, and what is read lies in the repository or is another's output."""
    recipes, made = run.find([]), []
    assert recipes.keys() == set(COMPLETE)
    for path in run.in_order(recipes):
        for key in ("model_name_or_path", "config_name", "tokenizer_name", "dataset_name"):
            if value := recipes[path].get(key):
                is_made = any(run.is_inside(value, folder) for folder in made)
                assert is_made or (ROOT / value).exists(), (path, key, value)
        made.append(recipes[path]["output_dir"])
    assert len(made) == len(set(made))


@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted({path.parent.name for path in COMPLETE}))
def test_the_smoke_runs_of_a_folder(folder, run, tmp_path, monkeypatch):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    recipes = run.find([folder])
    for path in run.in_order(recipes):
        assert main([path.stem.partition("_")[0], "--config", str(path), "--smoke"]) == 0
        AutoTokenizer.from_pretrained(recipes[path]["output_dir"])


@pytest.mark.parametrize("stem", KINDS)
def test_the_quickstart_is_its_examples_to_complete(stem, tmp_path):
    path = ROOT / "recipes" / "quickstart" / f"{stem}.yaml"
    named = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", str(tmp_path)]
    check = () if stem == "improve" else (check_values,)
    *_, values = recipe.read(KINDS[stem], ["--config", str(path), *named], *check)
    if stem == "improve":
        (tmp_path / "sft.yaml").write_text(yaml.safe_dump(values["sft"]), encoding="utf-8")
        recipe.read(KINDS["sft"], ["--config", str(tmp_path / "sft.yaml"), *named], check_values)
        recipe.nested(Sampling, values["sampling"], "sampling")


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
    return recipe.read(KINDS["sft"], [*argv(values, path / "r.yaml"), *more])[-1]


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
        recipe.read(KINDS["sft"], ["--smoke"])
