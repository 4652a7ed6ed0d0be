"""The GRPO stage with shared prompts is the run without them, to the order of summation, and computes less."""

import pytest
import torch
import yaml
from torch import nn
from trl import GRPOTrainer

from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.training import grpo

from .conftest import argv, assert_same_weights, byte_tokenizer, json_lines, tables, tiny_config, write_jsonl
from .test_processes import CONFIGS, launch

CASES = {
    "one batch": {"eval_strategy": "steps", "eval_steps": 1, "dataset_test_split": "train[:4]"},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "micro-batches of one": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    "several steps a generation": {"per_device_train_batch_size": 4, "steps_per_generation": 4},
    "iterations and reference": {"num_iterations": 2, "beta": 0.1},
    "depends on the micro-batch": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "loss_type": "bnpo",
        "top_entropy_quantile": 0.5,
    },
    "adapters": {
        "use_peft": True,
        "lora_r": 2,
        "lora_dropout": 0.0,
        "lora_target_modules": ["all-linear"],
        "beta": 0.1,
    },
    "no checkpointing": {"gradient_checkpointing": False},
}


@pytest.fixture(scope="module")
def latent_dir(tmp_path_factory):
    """Latent and linear attention, experts: config, weights wide enough for a wrong mask to show, tokenizer."""
    folder = tmp_path_factory.mktemp("latent")
    tokenizer = byte_tokenizer()
    changes = {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "linear_attention", "full_attention"],
        "kv_lora_rank": 12,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "initializer_range": 0.1,
    }
    torch.manual_seed(0)
    R1LlamaForCausalLM(R1LlamaConfig(**tiny_config(tokenizer).to_diff_dict() | changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(grpo_recipe, latent_dir, tmp_path):
    """Two steps on prompts of unequal length."""
    problems = [{"prompt": "1+" * (i % 5) + f"{i}=", "solution": str(i % 5 + i)} for i in range(16)]
    return grpo_recipe | {
        "model_name_or_path": str(latent_dir),
        "dataset_name": str(write_jsonl(tmp_path / "problems.jsonl", problems)),
        "max_steps": 2,
        "optim": "sgd",  # Adam would blow a rounding error of a zero gradient up to a whole step
        "learning_rate": 0.5,
    }


@pytest.fixture
def tokens_embedded(monkeypatch):
    """How many tokens all models have embedded since: a list with one number."""
    count = [0]
    forward = nn.Embedding.forward

    def counting(self, ids):
        count[0] += ids.numel()
        return forward(self, ids)

    monkeypatch.setattr(nn.Embedding, "forward", counting)
    return count


@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_run(case, recipe, tmp_path, tokens_embedded):
    tokens = []
    shared, plain = tmp_path / "shared", tmp_path / "plain"
    for folder in (shared, plain):
        before = tokens_embedded[0]
        changes = {"share_prompts": folder is shared, "output_dir": str(folder), "log_completions_steps": 1}
        grpo.main(argv(recipe | CASES[case], tmp_path / "r.yaml", **changes))
        tokens.append(tokens_embedded[0] - before)
    assert tokens[0] < 0.9 * tokens[1]
    assert tables(shared) == tables(plain)
    compared = {"loss", "grad_norm", "entropy", "kl", "router/max_vio", "eval_loss", "eval_entropy"}
    seen = set()
    for one, other in zip(json_lines(shared / "metrics.jsonl"), json_lines(plain / "metrics.jsonl"), strict=True):
        assert one.get("grad_norm", 1) > 0.01
        for name in compared & other.keys():
            assert one[name] == pytest.approx(other[name], abs=1e-5, rel=1e-4), name
        seen |= compared & other.keys()
    options = {name for name, key in {"kl": "beta", "eval_loss": "eval_steps"}.items() if key in CASES[case]}
    assert seen >= {"loss", "grad_norm", "entropy", "router/max_vio"} | options
    name = "adapter_model" if case == "adapters" else "model"
    assert_same_weights(shared, plain, name, atol=1e-5, rtol=1e-4)


def test_each_optimizer_step_trains_on_what_the_shuffle_dealt_it(recipe, tmp_path, monkeypatch):
    """Two steps a generation, each of two micro-batches: groups come together, no rollout changes its step."""
    seen = {True: [], False: []}
    for shared in seen:
        compute = GRPOTrainer._compute_loss

        def record(self, model, inputs, seen=seen[shared], compute=compute):
            seen.append(
                [tuple(row) for row in torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1).tolist()]
            )
            return compute(self, model, inputs)

        with monkeypatch.context() as patch:
            patch.setattr(GRPOTrainer, "_compute_loss", record)
            changes = {"share_prompts": shared, "output_dir": str(tmp_path / str(shared))}
            steps = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
            grpo.main(argv(recipe | steps, tmp_path / "r.yaml", **changes))
    for start in (0, 2):
        one, other = (seen[shared][start] + seen[shared][start + 1] for shared in (True, False))
        assert sorted(one) == sorted(other)
    width = len(seen[True][0][0]) - 12
    groups = {shared: sum(len({row[:width] for row in rows}) for rows in seen[shared]) for shared in seen}
    assert groups[True] < groups[False]


def test_another_model_runs_as_in_trl_and_the_log_says_so(recipe, model_dir, tmp_path, caplog):
    caplog.set_level("INFO", logger="r1llama")
    grpo.main(argv(recipe | {"model_name_or_path": str(model_dir)}, tmp_path / "r.yaml", max_steps=1))
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("`share_prompts`")]
    assert len(lines) == 1
    assert "LlamaForCausalLM cannot continue from the prompt of another row" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp_cpu2", "zero3_cpu2", "fsdp2"])
def test_on_two_processes(config, recipe, tmp_path):
    """In fp32: a rounded bf16 logit draws another token."""
    if config.startswith("zero3"):
        pytest.importorskip("deepspeed")
    changed = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    changed |= {"use_cpu": True, "num_processes": 2, "mixed_precision": "no"}
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(changed))
    words = argv(recipe, tmp_path / "r.yaml", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    shared, plain = tmp_path / "shared", tmp_path / "plain"
    launch(tmp_path / "launch.yaml", "grpo", [*words, "--output_dir", str(shared)])
    launch(tmp_path / "launch.yaml", "grpo", [*words, "--output_dir", str(plain), "--share_prompts", "false"])
    assert_same_weights(shared, plain, atol=1e-5, rtol=1e-4)
