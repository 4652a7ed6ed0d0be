"""Groups that hold every parameter once, and Muon against torch's own."""

import shutil

import pytest
import torch
from torch.testing import assert_close

from r1llama.training import Muon, grpo, param_groups, sft
from r1llama.training.optimizers import orthogonalise
from tests.model.conftest import ATTENTION, MLP, tiny_model, tokens

from .conftest import argv, assert_same_weights, json_lines

SWITCHES = ATTENTION["latent+linear"] | MLP["experts"] | {"num_mtp_layers": 1}


def names_of(model, parameters) -> set[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter] for parameter in parameters}


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_groups_hold_every_trainable_parameter_once(muon, tied):
    model = tiny_model(**SWITCHES, tie_word_embeddings=tied, attention_bias=True)
    model.model.layers[0].mlp.requires_grad_(False)
    groups = param_groups(model, 0.1, muon)
    held = [parameter for group in groups for parameter in group["params"]]
    expected = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(held) == len(set(held)) == len(expected)
    assert set(held) == set(expected)

    decayed = names_of(model, (p for g in groups if g["weight_decay"] == 0.1 for p in g["params"]))
    rest = names_of(model, (p for g in groups if g["weight_decay"] == 0 for p in g["params"]))
    assert all("norm" in name or name.endswith("bias") for name in rest)
    assert not any("norm" in name or name.endswith("bias") for name in decayed)
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.experts.gate_up_proj"} <= decayed


def test_muon_takes_the_matrices_of_the_layers():
    model = tiny_model(**SWITCHES)
    groups = param_groups(model, 0.1, muon=True)
    kinds = {name: group["parts"] for group in groups for name in names_of(model, group["params"])}
    for name, parameter in model.named_parameters():
        expected = int(parameter.dim() >= 2)
        if name.endswith("gate_up_proj"):
            expected = 2
        elif name in ("model.embed_tokens.weight", "lm_head.weight") or name.endswith("mlp.gate.weight"):
            expected = 0
        assert kinds[name] == expected, name


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 12, 5), (4, 5, 33), (1, 40, 32)])
def test_singular_values_near_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    update = orthogonalise(matrices).float()
    values = torch.linalg.svdvals(update)
    assert 0.6 < values.min() <= values.max() < 1.3
    for matrix, result in zip(matrices, update, strict=True):  # the same singular vectors
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        aligned = u.mT @ result @ v.mT
        assert (aligned - aligned.diagonal().diag()).abs().max() < 0.05


def test_each_expert_steps_as_with_torchs_muon():
    """Gate and up of each expert are matrices of their own; so is every projection."""
    model = tiny_model(**SWITCHES).train()
    muon = Muon(param_groups(model, 0.1, muon=True), lr=0.02)
    name = "model.layers.1.mlp.experts."
    weights = dict(model.named_parameters())
    fused = {leaf: weights[name + leaf] for leaf in ("gate_up_proj", "down_proj")}
    plain = weights["model.layers.1.self_attn.o_proj.weight"]

    def matrices(leaf, tensor):
        return [part for expert in tensor for part in (expert.chunk(2) if leaf == "gate_up_proj" else [expert])]

    twins = [(m.detach().clone(), leaf, i) for leaf, p in fused.items() for i, m in enumerate(matrices(leaf, p))]
    twins.append((plain.detach().clone(), None, 0))
    peer = torch.optim.Muon(
        [twin.requires_grad_() for twin, _, _ in twins], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(3):
        ids = tokens(2, 20, seed=step)
        model(ids, labels=ids).loss.backward()
        for twin, leaf, i in twins:
            twin.grad = plain.grad.clone() if leaf is None else matrices(leaf, fused[leaf].grad)[i].clone()
        muon.step()
        peer.step()
        muon.zero_grad()
    start = dict(tiny_model(**SWITCHES).named_parameters())
    for twin, leaf, i in twins:
        now, before = (
            w["model.layers.1.self_attn.o_proj.weight"] if leaf is None else matrices(leaf, w[name + leaf])[i]
            for w in (weights, start)
        )
        assert (now - twin).norm() < 0.01 * (twin - before).norm()  # the updates are bf16


def test_the_rest_steps_as_with_adamw():
    ours, peers = (tiny_model(**SWITCHES).train() for _ in range(2))
    muon = Muon(param_groups(ours, 0.1, muon=True), lr=0.01)
    adamw = torch.optim.AdamW(param_groups(peers, 0.1), lr=0.01)
    ids = tokens(2, 20)
    for model, optimizer in ((ours, muon), (peers, adamw)):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    expected = dict(peers.named_parameters())
    rest = [name for g in muon.param_groups if not g["parts"] for name in names_of(ours, g["params"])]
    assert len(rest) > 10
    for name in rest:
        assert_close(ours.get_parameter(name), expected[name], msg=name)


def test_muon_refuses_groups_of_other_makers():
    with pytest.raises(ValueError, match="lacks `parts`"):
        Muon(tiny_model().parameters())


@pytest.mark.parametrize("stage", [sft, grpo], ids=["sft", "grpo"])
def test_a_stage_trains_with_muon_and_resumes_bit_for_bit(stage, request, expert_dir, tmp_path):
    recipe = request.getfixturevalue(f"{stage.__name__.rpartition('.')[2]}_recipe")
    recipe |= {"muon": True, "model_name_or_path": str(expert_dir), "weight_decay": 0.1, "save_steps": 2}
    stage.main(argv(recipe, tmp_path / "r.yaml"))
    rates = [log["learning_rate"] for log in json_lines(tmp_path / "out" / "metrics.jsonl") if "loss" in log]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]

    state = torch.load(tmp_path / "out" / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert {group["lr"] for group in state["param_groups"]} == {state["param_groups"][0]["lr"]}
    assert sum("momentum_buffer" in entry for entry in state["state"].values()) > 10

    interrupted = tmp_path / "interrupted"
    shutil.copytree(tmp_path / "out" / "checkpoint-2", interrupted / "checkpoint-2")
    stage.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(interrupted)))
    assert_same_weights(tmp_path / "out", interrupted)
