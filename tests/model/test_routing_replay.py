"""Replayed routers choose what the rollout chose, and learn all the same."""

import pytest
import torch
from torch.testing import assert_close

from r1llama.model import record_routing, replay_routing

from .conftest import LINEAR, tiny_model, tokens

SWITCHES = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 8,
}
LATENT = {"kv_lora_rank": 12, "layer_types": ["full_attention", LINEAR, "full_attention"]}


def perturbed(model):
    """Another engine's rounding, exaggerated: enough for routers to choose otherwise."""
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * p.std() * torch.randn_like(p)
    return model


def recorded(model, *args, **kwargs):
    with torch.no_grad(), record_routing(model) as record:
        logits = model(*args, **kwargs).logits
    return record.ids(), logits


@pytest.mark.parametrize("shared", [False, True], ids=["own prompts", "shared prompt"])
@pytest.mark.parametrize("switches", [{}, LATENT], ids=["grouped", "latent+linear"])
def test_generation_is_recorded_and_replayed(switches, shared):
    """Prefill and decode steps, left padding: a full forward uses the same experts and has the same probabilities."""
    model = tiny_model(**SWITCHES, **switches)
    prompts = tokens(2, 7)
    prompts[0, :3] = 0
    if shared:
        prompts[1] = prompts[0]
    mask = (prompts > 0).long()
    torch.manual_seed(0)
    with record_routing(model) as record:
        text = model.generate(prompts, attention_mask=mask, max_new_tokens=6, do_sample=True)
    assert record.ids().shape == (2, 2, 12, 2)  # the last token was never read
    mask = torch.cat([mask, torch.ones(2, 5, dtype=torch.long)], 1)
    own, expected = recorded(model, text[:, :-1], attention_mask=mask)
    assert torch.equal(own.sort().values[:, mask.bool()], record.ids().sort().values[:, mask.bool()])
    other = perturbed(tiny_model(**SWITCHES, **switches))
    free, _ = recorded(other, text[:, :-1], attention_mask=mask)
    assert not torch.equal(free.sort().values[:, mask.bool()], own.sort().values[:, mask.bool()])
    with replay_routing(other, record.ids()):
        followed, _ = recorded(other, text[:, :-1], attention_mask=mask)
    assert torch.equal(followed, record.ids())
    with replay_routing(model, record.ids()):
        logits = model(text[:, :-1], attention_mask=mask).logits
    assert_close(logits[mask.bool()], expected[mask.bool()], atol=1e-6, rtol=1e-5)


def test_own_choice_replayed_changes_no_bit():
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model(dtype, **SWITCHES)
        ids = tokens(2, 9)
        chosen, expected = recorded(model, ids)
        with torch.no_grad(), replay_routing(model, chosen):
            assert torch.equal(model(ids).logits, expected)


def test_negative_ids_choose_for_themselves():
    model, other = tiny_model(**SWITCHES), perturbed(tiny_model(**SWITCHES))
    ids = tokens(2, 9)
    given, _ = recorded(model, ids)
    free, _ = recorded(other, ids[:, :4])
    given[:, :, :4, 1] = -1
    with replay_routing(other, given):
        followed, _ = recorded(other, ids)
    assert torch.equal(followed[:, :, :4].sort().values, free.sort().values)
    assert torch.equal(followed[:, :, 4:], given[:, :, 4:])


@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_gradients_follow_the_replayed_choice(checkpointing):
    """Against routers whose bias leaves no other choice; the backward pass runs after the context is left."""
    ids = tokens(1, 1)
    chosen = torch.tensor([4, 1]).expand(2, 1, 1, 2)
    forced = tiny_model(**SWITCHES).train()
    for layer in forced.model.layers[1:]:
        layer.mlp.gate.e_score_correction_bias.zero_()[chosen[0, 0, 0]] = 100.0
    forced(ids).logits.square().sum().backward()

    model = tiny_model(**SWITCHES).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    with replay_routing(model, chosen):
        loss = model(ids).logits.square().sum()
    with torch.no_grad():
        model(tokens(3, 5))  # another forward in between
    loss.backward()
    for (name, p), q in zip(model.named_parameters(), forced.parameters(), strict=True):
        assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4, msg=name)
    assert model.model.layers[2].mlp.gate.weight.grad.abs().max() > 0
    assert model.model.layers[2].mlp.load[chosen[0, 0, 0]].tolist() == [1, 1]  # counted once, as replayed


def test_shared_prompts_are_recorded_and_replayed():
    model, other = tiny_model(**SWITCHES), perturbed(tiny_model(**SWITCHES))
    ids = tokens(4, 9)
    ids[1, :5], ids[3, :5] = ids[0, :5], ids[2, :5]
    chosen, _ = recorded(model, ids)
    with torch.no_grad(), record_routing(model) as record:
        model.model(ids, prompt_length=5)
    assert torch.equal(record.ids().sort().values, chosen.sort().values)
    with torch.no_grad(), replay_routing(other, chosen), record_routing(other) as record:
        shared = other.model(ids, prompt_length=5).last_hidden_state
        plain = other.model(ids).last_hidden_state[:, 4:]
    assert torch.equal(record.parts[0], chosen)
    assert_close(shared, plain, atol=1e-5, rtol=1e-4)


def test_misuse_is_refused_and_leaves_no_trace():
    model = tiny_model(**SWITCHES)
    ids = tokens(2, 5)
    good, expected = recorded(model, ids)
    with pytest.raises(RuntimeError, match="already active"), replay_routing(model, good), replay_routing(model, good):
        pass
    with pytest.raises(RuntimeError, match="already active"), record_routing(model), record_routing(model):
        pass
    with pytest.raises(ValueError, match="no forward ran"), record_routing(model) as record:
        record.ids()
    for bad in (good[0], good[..., :1], good.float()):
        with pytest.raises(ValueError, match="give integers of shape"), replay_routing(model, bad):
            pass
    with pytest.raises(ValueError, match="num_experts is 6"), replay_routing(model, good + 6):
        pass
    for bad in (good[:1], good[:, :1], good[:, :, :3]):
        with pytest.raises(ValueError, match="-1 where a token"), replay_routing(model, bad):
            model(ids)
    with pytest.raises(ValueError, match="no R1Llama model with experts"), replay_routing(tiny_model(), good):
        pass
    assert model.model.replayed_routing is None
    assert model.model.recorded_routing is None
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)
