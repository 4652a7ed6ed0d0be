"""Multi-token prediction: its loss is what the paper's formulas give, token by token, and its drafts are sound."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from r1llama import R1LlamaForCausalLM, R1LlamaForSequenceClassification, R1LlamaModel
from r1llama.model import moe_blocks

from .conftest import ATTENTION, BASE, MLP, tiny_model, tokens

MODELS = {
    "grouped": {"num_mtp_layers": 2},
    "latent": ATTENTION["latent"] | {"num_mtp_layers": 1},
    "latent-experts": ATTENTION["latent"] | MLP["experts"] | {"num_mtp_layers": 2},
    "linear": ATTENTION["linear"] | {"num_mtp_layers": 1},
    "linear-experts": ATTENTION["grouped+linear"] | MLP["experts"] | {"num_mtp_layers": 2},
}
CROPPABLE = [name for name in MODELS if "linear" not in name]


@pytest.fixture(params=MODELS)
def switches(request):
    return MODELS[request.param]


def naive_loss(model, documents, labels):
    """The definition: each document `(1, S)` on its own; layer k sees the tokens up to i + k + 1 and no others."""
    sums = []
    for k in range(len(model.mtp.layers)):
        total, count = 0, 0
        for ids, wanted in zip(documents, labels, strict=True):
            hidden = model.model(ids).last_hidden_state
            for depth in range(k + 1):
                embeds = model.model.embed_tokens(ids[:, depth + 1 :])
                length = embeds.shape[1]
                if length == 0:
                    break
                positions = torch.arange(length)[None] + depth + 1
                mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
                hidden = model.mtp.layers[depth](
                    embeds,
                    hidden[:, :length],
                    attention_mask=mask,
                    position_ids=positions,
                    position_embeddings=model.model.rotary_emb(embeds, positions),
                    past_key_values=None,
                )
            targets = wanted[0, k + 2 :]
            if (targets != -100).any():
                logits = model.lm_head(hidden)[0, : len(targets)]
                total = total + F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
                count += (targets != -100).sum()
        sums.append(total / count)
    return torch.stack(sums).mean()


def mtp_loss(model, ids, **inputs):
    model(ids, **inputs)
    return model.model.auxiliary_losses["mtp"]


def documents_and_labels(lengths):
    documents = [tokens(1, length, seed=length) for length in lengths]
    labels = [ids.clone() for ids in documents]
    labels[0][:, :7] = -100  # a prompt
    return documents, labels


@pytest.mark.parametrize("layout", ["left", "right", "packed"])
def test_loss_equals_the_naive_twin(switches, layout):
    model = tiny_model(**switches).train()
    documents, labels = documents_and_labels([19, 2, 12, 1, 6])
    if layout == "packed":
        positions = torch.cat([torch.arange(ids.shape[1]) for ids in documents])[None]
        inputs = {"labels": torch.cat(labels, 1), "position_ids": positions}
        loss = mtp_loss(model, torch.cat(documents, 1), **inputs)
    else:
        batch = {"ids": torch.zeros(5, 20, dtype=torch.long), "mask": torch.zeros(5, 20, dtype=torch.long)}
        wanted = torch.full((5, 20), -100)
        for i, (ids, label) in enumerate(zip(documents, labels, strict=True)):
            where = slice(20 - ids.shape[1], None) if layout == "left" else slice(0, ids.shape[1])
            batch["ids"][i, where], batch["mask"][i, where], wanted[i, where] = ids[0], 1, label[0]
        loss = mtp_loss(model, batch["ids"], attention_mask=batch["mask"], labels=wanted)
    assert_close(loss, naive_loss(model, documents, labels).detach(), atol=1e-5, rtol=1e-5)


def test_gradient_is_of_both_losses(switches):
    """Attached or added up, with either kind of checkpointing, at the scale of an accumulated step."""
    model = tiny_model(**switches).train()
    ids = tokens(2, 18)
    twin = copy.deepcopy(model)
    main = twin(ids, labels=ids).loss  # attaches its own, to a graph that is not used
    twin.config.mtp_loss_coef = 0.0
    main = twin(ids, labels=ids).loss
    (main + 0.5 * 0.3 * naive_loss(twin, ids.split(1), ids.split(1))).backward()
    expected = {name: p.grad for name, p in twin.named_parameters()}
    assert all(expected[name] is not None for name in expected)
    for checkpointing in (None, True, False):
        ours = copy.deepcopy(model)
        ours.model.auxiliary_scale = 0.5
        if checkpointing is not None:
            ours.gradient_checkpointing_enable({"use_reentrant": checkpointing})
            ours.enable_input_require_grads()
        loss = ours(ids, labels=ids).loss
        assert_close(loss, main)
        loss.backward()
        for name, p in ours.named_parameters():
            assert_close(p.grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_trl_trains_it_too():
    from trl.trainer.utils import add_fused_lm_head

    model = tiny_model(**MODELS["latent-experts"]).train()
    ids = tokens(2, 14)
    expected = mtp_loss(model, ids, labels=ids)
    add_fused_lm_head(model)
    model(ids, labels=ids, fused_lm_head=True).loss.backward()
    assert_close(model.model.auxiliary_losses["mtp"], expected)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("case", ["no labels", "eval", "no grad", "frozen", "weight 0"])
def test_off(case):
    model = tiny_model(**MODELS["grouped"]).train(case != "eval")
    ids = tokens(2, 9)
    if case == "frozen":
        model.mtp.requires_grad_(False)
    if case == "weight 0":
        model.config.mtp_loss_coef = 0.0
    with torch.set_grad_enabled(case != "no grad"):
        logits = model(ids, labels=None if case == "no labels" else ids).logits
    assert "mtp" not in model.model.auxiliary_losses
    if case != "no grad":
        logits.sum().backward()
        assert all(p.grad is None for p in model.mtp.parameters())


def test_main_model_is_as_without(switches):
    model = tiny_model(**switches).train()
    plain = R1LlamaForCausalLM(copy.deepcopy(model.config).__class__(**model.config.to_dict() | {"num_mtp_layers": 0}))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("mtp.")})
    ids = tokens(2, 15)
    assert torch.equal(model(ids, labels=ids).loss, plain.train()(ids, labels=ids).loss)


def test_blocks_with_experts_are_counted_and_balanced():
    model = tiny_model(**MODELS["latent-experts"]).train()
    ids = tokens(2, 11)
    model(ids, labels=ids)
    blocks = moe_blocks(model)
    assert len(blocks) == 2 + 2
    assert [int(block.load.sum()) for block in blocks] == [2 * 11 * 2] * 4


@pytest.mark.parametrize("name", ["latent-experts", "linear"])
def test_random_tokens_never_score_below_ln_vocab(name):
    """A layer that saw its own target would copy it."""
    model = tiny_model(**MODELS[name]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.config.mtp_loss_coef = 1.0
    for step in range(40):
        ids = tokens(16, 24, seed=step)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    ids = tokens(64, 24, seed=1000)
    loss = mtp_loss(model, ids, labels=ids).item()
    assert math.log(BASE["vocab_size"] - 1) * 0.995 < loss < math.log(BASE["vocab_size"]) * 1.25


def saved_and_loaded(model, path):
    model.save_pretrained(path)
    return R1LlamaForCausalLM.from_pretrained(path).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", CROPPABLE)
def test_transformers_drafts_with_what_was_trained(name, tmp_path):
    """The first layer's logits at the last token, from the saved weights and transformers' `MtpModel`."""
    model = saved_and_loaded(tiny_model(**MODELS[name]), tmp_path)
    ids = tokens(1, 13)
    hidden = model.model(ids[:, :-1]).last_hidden_state
    positions = torch.arange(1, 13)[None]
    drafter = MtpModel.from_pretrained(model).eval()
    _, logits, _ = drafter(
        ids[:, 1:],
        hidden,
        torch.ones_like(positions),
        positions,
        mtp_cache=MtpCache(config=model.config.get_mtp_config()),
    )
    embeds = model.model.embed_tokens(ids[:, 1:])
    ours = model.mtp.layers[0](
        embeds,
        hidden,
        attention_mask=torch.full((12, 12), float("-inf")).triu(1)[None, None],
        position_ids=positions,
        position_embeddings=model.model.rotary_emb(embeds, positions),
        past_key_values=None,
    )
    assert_close(logits[:, 0], model.lm_head(ours[:, -1]), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", CROPPABLE)
def test_drafting_changes_no_token(name, tmp_path):
    model = saved_and_loaded(tiny_model(**MODELS[name]), tmp_path)
    for length in (2, 3, 9, 17):
        ids, options = tokens(1, length, seed=length), {"max_new_tokens": 24, "do_sample": False}
        assert model.generate(ids, use_mtp=True, **options).tolist() == model.generate(ids, **options).tolist()


@torch.no_grad()
def test_refusals(tmp_path):
    options = {"max_new_tokens": 3, "do_sample": False, "use_mtp": True}
    with pytest.raises(ValueError, match="not supported with stateful models"):
        saved_and_loaded(tiny_model(**MODELS["linear"]), tmp_path).generate(tokens(1, 5), **options)
    with pytest.raises(ValueError, match="num_mtp_layers 0"):
        tiny_model().generate(tokens(1, 5), **options)


@pytest.mark.parametrize("name", CROPPABLE)
def test_drafts_are_accepted_once_trained(name, tmp_path):
    """Sequences that count upwards, from anywhere, in steps of one."""
    model = tiny_model(**MODELS[name], initializer_range=0.05).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(50):
        ids = (tokens(8, 1, seed=step) + torch.arange(16)) % BASE["vocab_size"]
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model = saved_and_loaded(model.eval(), tmp_path)
    forwards = []
    model.model.register_forward_pre_hook(lambda *args: forwards.append(1))
    ids = torch.arange(5, 9)[None]
    output = model.generate(ids, max_new_tokens=36, do_sample=False, use_mtp=True)
    assert output[0].tolist() == list(range(5, 45))
    assert len(forwards) <= 1.2 * 36 / (1 + model.config.num_mtp_layers) + 1


def test_saved_model_drafts_without_r1llama(tmp_path):
    model = saved_and_loaded(tiny_model(**MODELS["latent-experts"]), tmp_path)
    expected = model.generate(tokens(1, 7), max_new_tokens=12, do_sample=False).tolist()
    code = f"""
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert "r1llama" not in sys.modules
ids = torch.tensor({tokens(1, 7).tolist()})
assert model.generate(ids, max_new_tokens=12, do_sample=False, use_mtp=True).tolist() == {expected}
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=300)


@pytest.mark.parametrize("kind", [R1LlamaModel, R1LlamaForSequenceClassification])
def test_other_heads_load_without_it(kind, tmp_path):
    tiny_model(**MODELS["grouped"]).save_pretrained(tmp_path)
    loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any("mtp" in name for name, _ in loaded.named_parameters())
    assert not info["unexpected_keys"] or not any("mtp" in key for key in info["unexpected_keys"])
