"""Loss-free balancing: what is counted, when the bias moves, and that it balances."""

import os
import socket

import pytest
import torch
from benchmarks.balancing import train
from torch.testing import assert_close

from r1llama.model import moe_blocks, update_router_bias

from .conftest import tiny_model, tokens

SWITCHES = {"num_experts": 6, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_intermediate_size": 8}


def loads(model):
    return torch.stack([block.load for block in moe_blocks(model)])


def step(model, ids, **kwargs):
    model(ids, labels=ids, **kwargs).loss.backward()


def test_counts_each_real_token_once():
    model = tiny_model(**SWITCHES).train()
    ids = tokens(3, 10)
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[1, 7:] = 0
    step(model, ids, attention_mask=mask)
    assert_close(loads(model).sum(-1), torch.full((2,), 2.0 * mask.sum()))
    one_by_one = torch.zeros(2, 6)
    for row, keep in zip(ids, mask.bool(), strict=True):
        for block in moe_blocks(model):
            block.load = None
        step(model, row[keep][None])
        one_by_one += loads(model)
    for block in moe_blocks(model):
        block.load = None
    step(model, ids, attention_mask=mask)
    assert_close(loads(model), one_by_one)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_is_not_counted(reentrant):
    model = tiny_model(**SWITCHES).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    step(model, tokens(2, 8))
    assert_close(loads(model).sum(-1), torch.full((2,), 2.0 * 16))


def test_evaluation_and_generation_are_not_counted():
    model = tiny_model(**SWITCHES)
    step(model, tokens(2, 8))  # eval mode
    model.train()
    with torch.no_grad():
        model(tokens(2, 8))
        model.generate(tokens(2, 8), max_new_tokens=3)
    assert all(block.load is None for block in moe_blocks(model))
    assert update_router_bias(model) == {}


def test_accumulates_and_moves_once_against_the_load():
    model = tiny_model(**SWITCHES).train()
    ids = tokens(4, 9)
    for row in ids:
        step(model, row[None])
    counted = loads(model)
    before = [block.gate.e_score_correction_bias.clone() for block in moe_blocks(model)]
    metrics = update_router_bias(model, rate=0.01)
    for old, block, load in zip(before, moe_blocks(model), counted, strict=True):
        moved = block.gate.e_score_correction_bias - old
        assert abs(moved.sum().item()) < 1e-6
        assert (moved[load > load.mean()].max() < moved[load < load.mean()].min()).item()
        assert block.load is None
    expected = (counted.amax(-1) / counted.mean(-1) - 1).mean().item()
    assert metrics["router/max_vio"] == pytest.approx(expected)
    assert metrics["router/dead_experts"] == (counted == 0).sum()
    assert 0 < metrics["router/load_entropy"] <= 1


def test_bias_is_fp32_saved_and_no_parameter(tmp_path):
    model = tiny_model(**SWITCHES)
    assert not any("correction_bias" in name for name, _ in model.named_parameters())
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    for ours, saved in zip(moe_blocks(model), moe_blocks(loaded), strict=True):
        assert saved.gate.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(saved.gate.e_score_correction_bias, ours.gate.e_score_correction_bias)
    loaded = loaded.bfloat16().train()  # as DeepSpeed casts
    for _ in range(3):
        step(loaded, tokens(2, 30))
        update_router_bias(loaded, rate=1e-3)
    assert all(block.gate.e_score_correction_bias.dtype == torch.float32 for block in moe_blocks(loaded))


def test_balances_padded_batches():
    unbalanced, balanced = train(0.0, False, steps=120), train(1e-2, False, steps=120)
    assert balanced["max_vio"] < 0.1 < unbalanced["max_vio"]
    assert balanced["loss"] < unbalanced["loss"] + 0.02


def train_on_rank(rank, port, folder):
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ.update(environment)
    torch.distributed.init_process_group("gloo")
    model = tiny_model(**SWITCHES).train()
    step(model, tokens(4, 9)[2 * rank : 2 * rank + 2])
    metrics = update_router_bias(model)
    biases = [block.gate.e_score_correction_bias for block in moe_blocks(model)]
    torch.save((metrics, biases), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_count_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_on_rank, (port, tmp_path), nprocs=2)
    model = tiny_model(**SWITCHES).train()
    step(model, tokens(4, 9))
    metrics = update_router_bias(model)
    for rank in range(2):
        rank_metrics, biases = torch.load(tmp_path / f"{rank}.pt")
        assert rank_metrics == metrics
        for bias, block in zip(biases, moe_blocks(model), strict=True):
            assert torch.equal(bias, block.gate.e_score_correction_bias)


def test_warns_when_nothing_updates(monkeypatch):
    from r1llama.model import modeling

    monkeypatch.setattr(modeling, "FORWARDS_BEFORE_WARNING", 3)
    warnings = []
    monkeypatch.setattr(modeling.logger, "warning_once", warnings.append)
    model = tiny_model(**SWITCHES).train()
    for _ in range(3):
        step(model, tokens(1, 5))
        update_router_bias(model)
    assert not warnings
    for _ in range(5):
        step(model, tokens(1, 5))
    assert len(warnings) == 1
    assert "RouterBalancing" in warnings[0]
