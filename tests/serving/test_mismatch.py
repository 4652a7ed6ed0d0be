"""GRPO with a colocated engine and a router that moves: both ends use the same experts."""

import pytest

from r1llama.training import grpo
from tests.training.conftest import argv, json_lines, weights

from .conftest import assert_follows_the_model
from .models import EXPERTS, LATENT, MODELS
from .test_rollouts import recipe, save, tiny  # noqa: F401

pytest.importorskip("vllm")


def steps(folder):
    return [log for log in json_lines(folder / "metrics.jsonl") if "loss" in log]


def test_updates_follow_the_engine_while_the_router_is_balanced(recipe, tmp_path, replayed):  # noqa: F811
    switches = LATENT | EXPERTS | {"tie_word_embeddings": True, "router_bias_update_rate": 0.1}
    before = save(tiny, tmp_path / "model", **switches).state_dict()
    grpo.main(argv(recipe, tmp_path / "r.yaml", pad_to_multiple_of=8))
    assert_follows_the_model(replayed)
    after = weights(tmp_path / "out")
    biases = [name for name in after if name.endswith("e_score_correction_bias")]
    assert len(biases) == 2
    assert all((after[name] - before[name]).abs().max() > 0.1 for name in biases)
    assert max(log["sampling/kl"] for log in steps(tmp_path / "out")) < 1e-9


def test_replay_brings_bf16_closer(recipe, tmp_path):  # noqa: F811
    save(tiny, tmp_path / "model", **EXPERTS | {"num_experts": 32, "num_experts_per_tok": 4})
    recipe |= {"bf16": True, "max_steps": 2, "max_completion_length": 64, "learning_rate": 1e-5}
    recipe["vllm_importance_sampling_correction"] = False  # TRL then logs no difference
    distances = {}
    for replay in (True, False):
        grpo.main(argv(recipe, tmp_path / "r.yaml", replay_routing=replay, output_dir=str(tmp_path / f"{replay}")))
        logs = steps(tmp_path / f"{replay}")
        assert all(log["sampling/sampling_logp_difference/max"] > 0 for log in logs)
        distances[replay] = sum(log["sampling/kl"] for log in logs) / len(logs)
    print(distances)
    assert distances[True] < 0.7 * distances[False]


def test_what_vllm_does_not_tell_is_not_replayed(recipe, tmp_path, caplog):  # noqa: F811
    save(tiny, tmp_path / "model", **MODELS["linear-experts"])
    grpo.main(argv(recipe, tmp_path / "r.yaml", max_steps=1))
    assert "`replay_routing`: vLLM keeps expert ids beside its prefix cache" in caplog.text
    assert steps(tmp_path / "out")[0]["sampling/kl"] < 1e-9
