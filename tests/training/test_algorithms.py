"""Each preset is its paper's objective: the trainer's loss and gradients against the formulas, written out."""

import copy
import shutil

import datasets
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, ModelConfig

from r1llama.model import replay_routing
from r1llama.training import grpo
from r1llama.training.algorithms import PRESETS, preset
from r1llama.training.checks import check_values
from r1llama.training.recipe import RecipeError, read, save
from r1llama.training.routing_replay import RoutingReplayGRPOTrainer

from .conftest import argv, assert_same_weights, json_lines
from .test_shared_prompts import latent_dir, recipe  # noqa: F401

LENGTH = 12  # max_completion_length


def clipped(ratio, advantage, low, high):
    return torch.min(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def over_tokens(x, mask):
    return (x * mask).sum(1) / mask.sum(1)


# To be maximised. Log-probabilities `(B, R)` of policy, old policy, reference; advantages `(B, 1)`; mask; tokens that
# an update trains on, on average over the updates of a generation.
def r1(policy, old, reference, advantage, mask, tokens):
    ratio, difference = (policy - old).exp(), reference - policy
    kl = difference.exp() - difference - 1
    return over_tokens(clipped(ratio, advantage, 10, 10) - 0.001 * kl, mask).mean()


def dr_grpo(policy, old, reference, advantage, mask, tokens):
    return (clipped((policy - old).exp(), advantage, 0.2, 0.2) * mask).sum() / (len(mask) * LENGTH)


def dapo(policy, old, reference, advantage, mask, tokens):
    return (clipped((policy - old).exp(), advantage, 0.2, 0.28) * mask).sum() / tokens


def gspo(policy, old, reference, advantage, mask, tokens):
    ratio = over_tokens(policy - old, mask).exp()
    return clipped(ratio, advantage[:, 0], 3e-4, 4e-4).mean()


def cispo(policy, old, reference, advantage, mask, tokens):
    weight = (policy - old).exp().clamp(max=5).detach()
    return (weight * advantage * policy * mask).sum() / tokens


FORMULAS = {"r1": r1, "dr_grpo": dr_grpo, "dapo": dapo, "gspo": gspo, "cispo": cispo}


@pytest.fixture(scope="module")
def stopping_dir(latent_dir, tmp_path_factory):  # noqa: F811
    """`latent_dir`, stopping at a fifth of its vocabulary: completions of every length."""
    folder = tmp_path_factory.mktemp("stopping")
    for path in latent_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = list(range(0, 260, 5))
    model.generation_config.save_pretrained(folder)
    return folder


def log_probabilities(model, inputs):
    """By one plain forward, with the experts of the rollouts. In a copy, TRL's patched one is the first model's."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with replay_routing(model, inputs["routing"].permute(2, 0, 1, 3)):
        logits = model.lm_head(model.model(ids, attention_mask=mask).last_hidden_state)
    logps = logits.float().log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return logps[:, -inputs["completion_ids"].shape[1] :]


@pytest.fixture
def compared(monkeypatch):
    """Watches the trainer: `(its loss, its gradients, those of the formula)` of each update."""
    seen, policies = [], []
    generate = RoutingReplayGRPOTrainer._generate_and_score_completions
    compute = RoutingReplayGRPOTrainer._compute_loss

    def generating(self, inputs):
        policies.append(copy.deepcopy(self.base_model))
        return generate(self, inputs)

    def computing(self, model, inputs):
        names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
        ours = compute(self, model, inputs)
        updates = self.args.steps_per_generation / self.args.gradient_accumulation_steps
        with torch.no_grad():
            old, reference = (log_probabilities(policy, inputs) for policy in (policies[-1], policies[0]))
        formula = -FORMULAS[self.algorithm](
            log_probabilities(model, inputs),
            old,
            reference,
            inputs["advantages"][:, None],
            inputs["completion_mask"],
            inputs["num_items_in_batch"] / updates,
        )
        gradients = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (ours, formula)]
        seen.append((ours.item(), formula.item(), dict(zip(names, zip(*gradients, strict=True), strict=True))))
        return compute(self, model, inputs)

    monkeypatch.setattr(RoutingReplayGRPOTrainer, "_generate_and_score_completions", generating)
    monkeypatch.setattr(RoutingReplayGRPOTrainer, "_compute_loss", computing)
    return seen


@pytest.mark.parametrize("algorithm", PRESETS)
def test_loss_and_gradients_are_the_papers(algorithm, recipe, stopping_dir, compared, tmp_path, monkeypatch):  # noqa: F811
    """Two updates a generation, so that ratios leave 1; twice. DAPO's groups come from several generations."""
    monkeypatch.setattr(RoutingReplayGRPOTrainer, "algorithm", algorithm, raising=False)
    changes = {
        "model_name_or_path": str(stopping_dir),
        "algorithm": algorithm,
        "steps_per_generation": 2,
        "max_steps": 4,
        "log_completions_steps": 1,
        "gradient_checkpointing": False,
        "reward_weights": [2.0],
    }
    name = "letter_share"
    if algorithm == "dapo":
        name = "half_flat"
        changes["reward_funcs"] = ["tests.training.rewards.half_flat"]
    grpo.main(argv(recipe, tmp_path / "r.yaml", **changes))
    assert len(compared) == 4
    for ours, formula, gradients in compared:
        assert ours == pytest.approx(formula, abs=2e-5, rel=1e-4)
        scale = max(expected.abs().max() for _, expected in gradients.values() if expected is not None)
        assert scale > 1e-3
        for parameter, (gradient, expected) in gradients.items():
            if expected is not None:
                assert_close(
                    gradient / scale, expected / scale, atol=5e-4, rtol=1e-3, msg=lambda m, n=parameter: f"{n}: {m}"
                )

    logs = [log for log in json_lines(tmp_path / "out" / "metrics.jsonl") if "loss" in log]
    if algorithm == "dapo":
        assert sum(log.get("dynamic_sampling/resamples", 0) for log in logs) >= 1
        assert all(log.get("dynamic_sampling/flat", 0) == 0 for log in logs)
    clips = "cispo_clip_ratio" if algorithm == "cispo" else "clip_ratio/region_mean"
    assert (max(log[clips] for log in logs) > 0) == (algorithm not in ("r1", "cispo"))  # theirs are wide

    rows = datasets.load_dataset("parquet", data_dir=str(tmp_path / "out" / "completions"), split="train")
    rows = rows.with_format("torch")
    reward = 2 * rows[name][:]
    if algorithm == "dapo":
        over = (rows["tokens"][:] - (LENGTH - 2)).clamp(min=0) / 2  # a fifth of 12 tokens, rounded
        assert_close(rows["soft_overlong_punishment_reward"][:], -over.to(torch.float32))
        reward = reward - 0.5 * over
    assert len(rows["tokens"][:].unique()) > 3
    groups = reward.view(-1, 4)
    advantage = groups - groups.mean(1, keepdim=True)
    if algorithm != "dr_grpo":
        advantage = advantage / (groups.std(1, keepdim=True) + 1e-4)
    assert_close(rows["advantage"][:].view(-1, 4), advantage.float(), atol=1e-4, rtol=1e-3)


def resolved(tmp_path, recipe, **changes):  # noqa: F811
    words = argv(recipe, tmp_path / "r.yaml", **changes)
    kinds = (grpo.GRPOArguments, GRPOConfig, ModelConfig)
    return read(kinds, words, check_values, preset)


def test_a_preset_fills_what_the_recipe_does_not_set(grpo_recipe, tmp_path):
    values = resolved(tmp_path, grpo_recipe, algorithm="dapo", epsilon_high=0.3)[-1]
    assert values["epsilon_high"] == 0.3
    assert {key: values[key] for key in PRESETS["dapo"] if key != "epsilon_high"} == {
        key: value for key, value in PRESETS["dapo"].items() if key != "epsilon_high"
    }
    save(values, tmp_path / "saved.yaml")
    again = read((grpo.GRPOArguments, GRPOConfig, ModelConfig), ["--config", str(tmp_path / "saved.yaml")])[-1]
    assert again == values


def test_a_preset_without_the_reference_of_its_own_that_adapters_lack(grpo_recipe, tmp_path):
    _, config, *_ = resolved(tmp_path, grpo_recipe, algorithm="r1", use_peft=True)
    assert config.beta == 0.001
    assert not config.sync_ref_model


def test_unknown_algorithms_are_refused(grpo_recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"`algorithm: grdo` is none of r1, .* Did you mean `dr_grpo`"):
        resolved(tmp_path, grpo_recipe, algorithm="grdo")


def test_a_renewed_reference_survives_resuming(grpo_recipe, tmp_path):
    """Renewed at step 2: from there on, resumed and uninterrupted runs have the same KL."""
    changes = {"algorithm": "r1", "beta": 0.1, "ref_model_sync_steps": 2, "save_steps": 3, "max_steps": 5}
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", **changes))
    interrupted = tmp_path / "interrupted"
    shutil.copytree(tmp_path / "out" / "checkpoint-3", interrupted / "checkpoint-3")
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", **changes, output_dir=str(interrupted)))
    assert_same_weights(tmp_path / "out", interrupted)
    kl = {log["step"]: log["kl"] for log in json_lines(tmp_path / "out" / "metrics.jsonl") if "kl" in log}
    assert kl[3] == pytest.approx(0, abs=1e-7)
    assert kl[4] > 1e-6
    for log in json_lines(interrupted / "metrics.jsonl"):
        assert log.get("kl") == kl.get(log["step"]) or "train_loss" in log
