"""What the folders of the five systems say about themselves is so."""

import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from r1llama.model.sizes import sizes
from r1llama.rewards import get_reward
from r1llama.tasks import gsm8k

RECIPES = Path(__file__).parents[2] / "recipes"


def table(folder) -> dict[str, str]:
    """First and last cell of each row in the README's tables."""
    lines = (RECIPES / folder / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[-1] for row in rows}


@pytest.mark.parametrize(
    ("folder", "theirs"),
    [("spongebob-29m", 28_975_616), ("linear-moe-10m", 10_095_760), ("latent-moe-774m", 774_168_798)],
)
def test_sizes_are_those_of_the_readme_and_near_the_authors(folder, theirs):
    found, said = sizes(AutoConfig.from_pretrained(RECIPES / folder / "model.json")), table(folder)
    assert abs(found.total - theirs) < 0.0002 * theirs
    expected = {
        "parameters": found.total,
        "a token passes": found.active,
        "in embeddings": found.embedding,
        "cache of a token, bytes in bfloat16": 2 * found.cache_values,
        "state of a text, bytes in float32": 4 * found.cache_state,
    }
    assert {row: f"{number:,}" for row, number in expected.items() if row in said} == {
        row: cell for row, cell in said.items() if row in expected
    }
    assert len(said.keys() & expected.keys()) >= 4


@pytest.mark.parametrize("folder", ["spongebob-29m", "linear-moe-10m", "latent-moe-774m"])
def test_the_smoke_model_is_the_same_architecture_in_small(folder):
    real, small = (json.loads((RECIPES / folder / f"{name}.json").read_text()) for name in ("model", "smoke"))
    assert real.keys() - small.keys() == {"vocab_size"}  # the tokenizer's
    assert set(real.get("layer_types", [])) == set(small.get("layer_types", []))
    assert all(small[key] == real[key] for key in real if isinstance(real[key], str | bool | dict))


@pytest.mark.parametrize("name", ["grpo", "grpo_lora"])
def test_tiny_r1_pays_4_for_the_reply_that_its_prompt_asks_for(name):
    recipe = yaml.safe_load((RECIPES / "tiny-r1" / f"{name}.yaml").read_text(encoding="utf-8"))
    row = {"question": "48 and half of it?", "answer": "Half is <<48/2=24>>24.\n#### 1,072"}
    problem = gsm8k.problem(row, recipe["system_prompt"])
    assert re.search(r"<reasoning>\n.*\n</reasoning>\n<answer>\n.*\n</answer>", problem["prompt"][0]["content"])

    def paid(text):
        call = {
            "completions": [[{"role": "assistant", "content": text}]],
            "prompts": [problem["prompt"]],
            "solution": [problem["solution"]],
        }
        rewards = [get_reward(reward)(**call)[0] for reward in recipe["reward_funcs"]]
        return sum(weight * reward for weight, reward in zip(recipe["reward_weights"], rewards, strict=True))

    right = "<reasoning>\nHalf of 48 is 24.\nTogether 1072.\n</reasoning>\n<answer>\n{}\n</answer>"
    assert paid(right.format(1072)) == 4.0
    assert paid(right.format("1,072")) == 4.0
    assert paid(right.format(1073)) == 2.0
    assert paid("1072") <= 2.0
    assert paid(right.format(1072).replace("</answer>", "")) < 2.0


def test_tiny_r1_takes_192_completions_a_step():
    recipe = yaml.safe_load((RECIPES / "tiny-r1" / "grpo.yaml").read_text(encoding="utf-8"))
    gpus = int(re.search(r"--num_processes (\d+)", (RECIPES / "tiny-r1" / "README.md").read_text())[1])
    assert recipe["per_device_train_batch_size"] * gpus * recipe["gradient_accumulation_steps"] == 192
