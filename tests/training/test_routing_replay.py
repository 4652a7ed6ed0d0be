"""The GRPO stage trains each token with the experts that its rollout used."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from r1llama.model import moe_blocks, record_routing
from r1llama.training import grpo
from r1llama.training.routing_replay import RoutingReplayGRPOTrainer

from .conftest import argv
from .test_shared_prompts import latent_dir, recipe  # noqa: F401

CASES = {
    "shared prompts": {},
    "accumulation": {"share_prompts": False, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "iterations and reference": {"num_iterations": 2, "beta": 0.1, "pad_to_multiple_of": 8},
    "adapters": {
        "use_peft": True,
        "lora_r": 2,
        "lora_dropout": 0.0,
        "lora_target_modules": ["o_proj", "down_proj"],
        "beta": 0.1,
    },
}


@pytest.fixture
def disturbed(monkeypatch):
    """Between rollout and update, every router's bias is thrown about. What each update saw: `(followed, experts of
    the rollouts, log-probabilities as the rollouts' routers would have them, those of the update)`."""
    seen = []
    logps = RoutingReplayGRPOTrainer._get_per_token_logps_and_entropies

    def observed(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        if not torch.is_grad_enabled():
            return logps(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        base = self.base_model
        with torch.no_grad(), record_routing(base) as free:
            logits = base.lm_head(base.model(input_ids, attention_mask=attention_mask).last_hidden_state)
        gates = [block.gate for block in moe_blocks(base)]
        biases = [gate.e_score_correction_bias.clone() for gate in gates]
        for i, gate in enumerate(gates):
            torch.manual_seed(i)
            gate.e_score_correction_bias.normal_()
        with record_routing(model) as record:
            result = logps(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        for gate, bias in zip(gates, biases, strict=True):
            gate.e_score_correction_bias.copy_(bias)
        expected = logits.log_softmax(-1)[:, :-1].gather(-1, input_ids[:, 1:, None])[..., 0][:, -logits_to_keep:]
        position = attention_mask.cumsum(1)
        read = (position < position[:, -1:]) & attention_mask.bool()  # the last token may not have been
        kept = attention_mask[:, -logits_to_keep:].bool()
        seen.append((record.ids()[:, read], free.ids()[:, read], expected[kept], result[0].detach()[kept]))
        return result

    monkeypatch.setattr(RoutingReplayGRPOTrainer, "_get_per_token_logps_and_entropies", observed)
    return seen


@pytest.mark.parametrize("case", CASES)
def test_updates_follow_the_rollouts(case, recipe, disturbed, tmp_path):  # noqa: F811
    changes = CASES[case] | {"max_steps": 1}
    grpo.main(argv(recipe, tmp_path / "r.yaml", **changes))
    assert disturbed
    for followed, chosen, expected, logps in disturbed:
        assert torch.equal(followed.sort().values.long(), chosen.sort().values.long())
        assert_close(logps, expected, atol=2e-5, rtol=1e-4)


def test_without_it_routers_choose_anew(recipe, disturbed, tmp_path):  # noqa: F811
    grpo.main(argv(recipe, tmp_path / "r.yaml", max_steps=1, replay_routing=False))
    followed, chosen, expected, logps = disturbed[0]
    assert not torch.equal(followed.sort().values, chosen.sort().values)
    assert (logps - expected).abs().max() > 1e-2


def test_routers_learn(recipe, latent_dir, tmp_path):  # noqa: F811
    grpo.main(argv(recipe, tmp_path / "r.yaml"))
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (latent_dir, tmp_path / "out"))
    for old, new in zip(moe_blocks(before), moe_blocks(after), strict=True):
        assert not torch.equal(old.gate.weight, new.gate.weight)
