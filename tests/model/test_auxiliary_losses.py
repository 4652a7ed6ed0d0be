"""Sequence-wise balance loss and router z-loss: their values, their gradients through any kind of checkpointing."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch.testing import assert_close

from r1llama.model.experts import balance_loss, z_loss

from .conftest import tiny_config, tiny_model, tokens

SWITCHES = {"num_experts": 6, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_intermediate_size": 8}
LOSSES = {"aux_loss_alpha": 0.3, "router_z_loss_coef": 0.05}


def naive_losses(logits_BSE, scores_BSE, ids_BSK, mask_BS):
    """The papers' sums, token by token."""
    B, S, E = logits_BSE.shape
    K = ids_BSK.shape[-1]
    balances, squares = [], []
    for b in range(B):
        real = [t for t in range(S) if mask_BS[b, t]]
        squares += [logits_BSE[b, t].logsumexp(-1) ** 2 for t in real]
        if not real:
            continue
        total = 0.0
        for i in range(E):
            f = E / (K * len(real)) * sum((ids_BSK[b, t] == i).sum() for t in real)
            total = total + f * sum(scores_BSE[b, t, i] / scores_BSE[b, t].sum() for t in real) / len(real)
        balances.append(total)
    return torch.stack(balances).mean(), torch.stack(squares).mean()


def test_losses_are_the_papers_sums():
    torch.manual_seed(0)
    logits = torch.randn(4, 7, 6)
    mask = torch.ones(4, 7)
    mask[0, :3] = mask[1, 5:] = mask[2] = 0  # left padding, right padding, nothing but padding
    for scores in (logits.sigmoid(), logits.softmax(-1)):
        ids = (scores + torch.randn(6)).topk(2, -1).indices  # as a biased router chooses
        balance, z = naive_losses(logits, scores, ids, mask)
        assert_close(balance_loss(scores / scores.sum(-1, keepdim=True), ids, mask), balance)
        assert_close(z_loss(logits, mask), z)


def test_balance_loss_is_one_in_perfect_balance_and_more_in_collapse():
    ids = torch.arange(12).reshape(1, 6, 2) % 6
    even = torch.full((1, 6, 6), 1 / 6)
    assert balance_loss(even, ids, torch.ones(1, 6)).item() == pytest.approx(1.0)
    collapsed = torch.zeros(1, 6, 6)
    collapsed[..., :2] = 0.5
    assert balance_loss(collapsed, ids % 2, torch.ones(1, 6)).item() == pytest.approx(3.0)


def gradients(model, ids, mask, add_losses=False):
    """Gradients of a training forward; `add_losses`: of an explicit sum instead of what the model attaches."""
    model.zero_grad()
    routed = {}
    if add_losses:
        for i, layer in enumerate(model.model.layers[1:]):
            gate = layer.mlp.gate
            gate.register_forward_hook(lambda gate, args, out, i=i: routed.update({i: (gate, *out)}))
    loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    for gate, logits, _, chosen in routed.values():
        parts = [x.unflatten(0, ids.shape) for x in (logits, gate.score(logits), chosen)]
        balance, z = naive_losses(*parts, mask)
        loss = loss + LOSSES["aux_loss_alpha"] * balance + LOSSES["router_z_loss_coef"] * z
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def batch():
    ids = tokens(3, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[1, 7:] = 0
    return ids, mask


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_attached_gradients_are_those_of_the_sum(scoring_func, checkpointing):
    ids, mask = batch()
    expected = gradients(tiny_model(**SWITCHES, scoring_func=scoring_func).train(), ids, mask, add_losses=True)
    without = gradients(tiny_model(**SWITCHES, scoring_func=scoring_func).train(), ids, mask)
    model = tiny_model(**SWITCHES, **LOSSES, scoring_func=scoring_func).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    for name, gradient in gradients(model, ids, mask).items():
        assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)
    router = "model.layers.2.mlp.gate.weight"
    assert (expected[router] - without[router]).abs().max() > 1e-3


def test_language_loss_is_shown_apart():
    ids, mask = batch()
    labels = ids.masked_fill(mask == 0, -100)
    model, plain = tiny_model(**SWITCHES, **LOSSES).train(), tiny_model(**SWITCHES).train()
    loss = model(ids, attention_mask=mask, labels=labels).loss
    assert torch.equal(loss, plain(ids, attention_mask=mask, labels=labels).loss)
    shown = model.model.auxiliary_losses
    assert set(shown) == {"balance", "z"}
    assert not any(value.requires_grad for value in shown.values())
    values = copy.copy(shown)
    loss.backward()
    assert model.model.auxiliary_losses == values
    assert plain.model.auxiliary_losses == {}
    with torch.no_grad():
        model(ids)
    assert model.model.auxiliary_losses == {}


def test_nothing_is_attached_in_evaluation():
    ids, mask = batch()
    model, plain = tiny_model(**SWITCHES, **LOSSES), tiny_model(**SWITCHES)
    ours, expected = gradients(model, ids, mask), gradients(plain, ids, mask)
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_accumulation_equals_the_big_batch():
    """The balance loss is a mean over sequences, so sequences one by one are the batch."""
    model = tiny_model(**SWITCHES, aux_loss_alpha=0.3).train()
    ids, mask = batch()
    labels = ids.masked_fill(mask == 0, -100)
    expected = gradients(model, ids, mask)
    model.zero_grad()
    model.model.auxiliary_scale = 1 / 3
    items = (labels[:, 1:] != -100).sum()
    for row in range(3):
        part = slice(row, row + 1)
        model(ids[part], attention_mask=mask[part], labels=labels[part], num_items_in_batch=items).loss.backward()
    for name, p in model.named_parameters():
        assert_close(p.grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_two_forwards_before_a_backward_keep_their_own_masks():
    ids, mask = batch()
    other = torch.ones_like(mask)
    plain, checkpointed = (tiny_model(**SWITCHES, **LOSSES).train() for _ in range(2))
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    for model in (plain, checkpointed):
        first = model(ids, attention_mask=mask).logits[mask.bool()].sum()
        second = model(ids[:2], attention_mask=other[:2]).logits.sum()
        (first + second).backward()
    for ours, expected in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        assert_close(ours.grad, expected.grad)


def test_shared_prompts_change_nothing():
    ids, mask = batch()
    ids[1, :5], mask[1, :5], ids[2, :5], mask[2, :5] = ids[0, :5], mask[0, :5], tokens(1, 5, seed=3), 1
    seen = []
    for shared in (False, True):
        model = tiny_model(**SWITCHES, **LOSSES).train()
        inputs = {"input_ids": ids, "attention_mask": mask}
        hidden = model.model(**inputs, **({"prompt_length": 5} if shared else {})).last_hidden_state[:, -5:]
        hidden[mask[:, -5:].bool()].square().sum().backward()
        loads = [layer.mlp.load for layer in model.model.layers[1:]]
        seen.append([*model.model.auxiliary_losses.values(), *loads, *(p.grad for p in model.model.parameters())])
    for ours, expected in zip(*seen, strict=True):
        assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("field", ["aux_loss_alpha", "router_z_loss_coef"])
def test_negative_coefficients_are_refused(field):
    with pytest.raises(StrictDataclassClassValidationError, match=f"{field} is -1"):
        tiny_config(num_experts=4, **{field: -1.0})
