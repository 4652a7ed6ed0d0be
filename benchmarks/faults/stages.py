"""A run of a few seconds for each stage: a model with experts and linear attention, a checkpoint at every step."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.data.tokenizer import train_tokenizer

STEPS = 6

COMMON = {
    "max_steps": STEPS,
    "save_steps": 1,
    "save_total_limit": 3,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}
# stage, or stage-variant -> what its recipe says beside that
RECIPES = {
    "sft": {"dataset_name": "demonstrations.jsonl", "max_length": 64, "muon": True},
    "grpo": {
        "dataset_name": "problems.jsonl",
        "reward_funcs": ["benchmarks.faults.stages.letter_share"],
        "num_generations": 4,
        "max_completion_length": 8,
    },
    "distill": {"dataset_name": "demonstrations.jsonl", "max_length": 64, "tag_weights": "5"},
    "distill-teacher": {
        "dataset_name": "demonstrations.jsonl",
        "teacher_model_name_or_path": "teacher",
        "lmbda": 0.5,
        "max_completion_length": 24,
    },
    "pretrain": {"dataset_name": "texts.jsonl", "max_length": 64},
    "pretrain-stream": {"dataset_name": "texts.jsonl", "max_length": 64, "dataset_streaming": True},
    "verifier": {"dataset_name": "graded.jsonl", "max_length": 64, "eval_strategy": "no"},
    "improve": {
        "dataset_name": "problems.jsonl",
        "dataset_train_split": "train[:16]",
        "dataset_test_split": "train[16:24]",
        "reward_funcs": ["benchmarks.faults.stages.letter_share"],
        "keep_threshold": 0.1,
        "rounds": 1,
        "sampling": {"num_generations": 2, "max_completion_length": 8, "batch_size": 16},
    },
}


@dataclass
class Stage:
    """One stage: its name, its recipe without the output directory, and the directory within that which has the
    checkpoints."""

    name: str
    recipe: dict
    trained_in: str = "."

    def arguments(self, folder: Path, **changes) -> list[str]:
        """The command line of a run that writes to `folder / "out"`; the changes are those of the training."""
        recipe = self.recipe | {"output_dir": str(folder / "out")}
        if "sft" in recipe:
            recipe["sft"] = recipe["sft"] | changes
        else:
            recipe |= changes
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return ["--config", str(path)]

    def main(self, argv: list[str]) -> None:
        importlib.import_module(f"r1llama.training.{self.name.partition('-')[0]}").main(argv)


def letter_share(completions, **columns) -> list[float]:
    """A reward that even a random model earns differently for different completions."""
    return [sum(char.isascii() and char.isalpha() for char in text) / max(len(text), 1) for text in completions]


def write_inputs(folder: Path) -> None:
    """The model that every stage starts from, its teacher, and the data."""
    sums = [(a, b) for a in range(8) for b in range(8)]
    rows = {
        "problems": [{"prompt": f"{a}+{b}=", "solution": str(a + b)} for a, b in sums],
        "demonstrations": [
            {"prompt": f"{a}+{b}=", "completion": f"<think>{a} and {b}</think><answer>{a + b}</answer>"}
            for a, b in sums
        ],
        "graded": [
            {"prompt": f"{a}+{b}=", "completion": str(a + b), "accuracy_reward": float(b % 2)} for a, b in sums
        ],
        "texts": [{"text": f"{a} and {b} make {a + b}, and that is all. " * (1 + a % 3)} for a, b in sums],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = train_tokenizer(())
    config = R1LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        layer_types=["full_attention", "linear_attention", "full_attention"],
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        aux_loss_alpha=0.01,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    for seed, name in enumerate(("model", "teacher")):
        torch.manual_seed(seed)
        model = R1LlamaForCausalLM(config)
        # So many tokens end a text that a random model does end it.
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(100, 190)]
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def stages(inputs: Path) -> dict[str, Stage]:
    """Every stage, on the inputs that `write_inputs` wrote."""
    made = {}
    for name, changes in RECIPES.items():
        recipe = {"model_name_or_path": "model"} | changes
        recipe |= {key: str(inputs / recipe[key]) for key in recipe if key.endswith(("name_or_path", "dataset_name"))}
        if name == "improve":
            made[name] = Stage(name, recipe | {"sft": COMMON | {"max_length": 64}}, "round-1/model")
        else:
            made[name] = Stage(name, COMMON | recipe)
    return made
