"""What must hold for every combination of switches, in fp32 and bf16."""

import copy
import math

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache, QuantizedCache, StaticCache

from .conftest import BASE, LINEAR, SWITCHES, tiny_model, tokens

TOLERANCE = {
    torch.float32: {"atol": 2e-5, "rtol": 1e-4},
    torch.bfloat16: {"atol": 0.12, "rtol": 0.1},  # logits of size 2, and another order of summation
}
AUXILIARY = {"aux_loss_alpha": 0.05, "router_z_loss_coef": 0.01}  # attached in training, if there are experts


def close(actual, expected, dtype):
    """In bf16 a rounded router score may send a token to another expert: a few positions may differ."""
    if dtype == torch.bfloat16:
        wrong = ((actual - expected).abs() > 0.12 + 0.1 * expected.abs()).any(-1).float().mean()
        assert wrong <= 0.15, f"{wrong:.0%} of the positions differ"
    else:
        assert_close(actual, expected, **TOLERANCE[dtype])


@torch.no_grad()
def test_later_token_never_changes_earlier_logit(switches, dtype):
    model = tiny_model(dtype, **switches)
    ids = tokens(2, 21)
    changed = ids.clone()
    changed[:, 13:] = changed[:, 13:] % 59 + 1
    before, after = model(ids).logits, model(changed).logits
    close(after[:, :13], before[:, :13], dtype)
    assert (after[:, 13:] - before[:, 13:]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_changes_a_logit(switches, dtype, side):
    model = tiny_model(dtype, **switches)
    lengths = [9, 17, 14]
    rows = [tokens(1, length, seed=length) for length in lengths]
    padded = torch.zeros(3, 20, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for i, row in enumerate(rows):
        where = slice(20 - lengths[i], 20) if side == "left" else slice(0, lengths[i])
        padded[i, where], mask[i, where] = row[0], 1
    for filler in (0, 7):
        logits = model(padded.masked_fill(mask == 0, filler), attention_mask=mask).logits
        for i, row in enumerate(rows):
            close(logits[i][mask[i].bool()], model(row).logits[0], dtype)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [False, True])
def test_packed_documents_never_see_each_other(switches, dtype, use_cache):
    model = tiny_model(dtype, **switches)
    lengths = [5, 70, 1, 66]  # across the chunks of linear attention, and within them
    rows = [tokens(1, length, seed=length) for length in lengths]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(torch.cat(rows, 1), position_ids=positions, use_cache=use_cache).logits[0]
    for part, row in zip(packed.split(lengths), rows, strict=True):
        close(part, model(row).logits[0], dtype)


@torch.no_grad()
@pytest.mark.parametrize("cache_class", ["dynamic", "static"])
def test_cached_equals_uncached_equals_chunked_prefill(switches, dtype, cache_class):
    model = tiny_model(dtype, **switches)
    ids = tokens(2, 24)
    expected = model(ids, use_cache=False).logits
    for chunks in ([23, 1], [10, 1, 1, 7, 5], [1] * 24):
        if cache_class == "static":
            cache = StaticCache(model.config, max_cache_len=32)
        else:
            cache = DynamicCache(config=model.config)
        parts = []
        for chunk in ids.split(chunks, dim=1):
            parts.append(model(chunk, past_key_values=cache, use_cache=True).logits)
        close(torch.cat(parts, 1), expected, dtype)
        assert int(cache.get_seq_length()) == 24


@torch.no_grad()
def test_generation_with_left_padding_equals_each_prompt_alone(switches):
    model = tiny_model(**switches)
    options = {"max_new_tokens": 8, "do_sample": False}
    long, short = tokens(1, 11), tokens(1, 6, seed=2)
    padded = torch.cat([long, torch.cat([torch.zeros(1, 5, dtype=torch.long), short], 1)])
    together = model.generate(padded, attention_mask=(padded > 0).long(), **options)
    assert together[0, 11:].tolist() == model.generate(long, **options)[0, 11:].tolist()
    assert together[1, 11:].tolist() == model.generate(short, **options)[0, 6:].tolist()
    uncached = model.generate(padded, attention_mask=(padded > 0).long(), use_cache=False, **options)
    static = model.generate(
        padded, attention_mask=(padded > 0).long(), cache_implementation="static", disable_compile=True, **options
    )
    assert together.tolist() == uncached.tolist() == static.tolist()


@torch.no_grad()
def test_beam_search_equals_uncached(switches):
    model = tiny_model(**switches)
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    ids = tokens(2, 7)
    assert model.generate(ids, **options).tolist() == model.generate(ids, use_cache=False, **options).tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in SWITCHES if "linear" not in name])
def test_quantized_cache(name):
    """8-bit latents or keys: the logits move by the rounding, not more."""
    model = tiny_model(**SWITCHES[name])
    ids = tokens(2, 24)
    try:
        cache = QuantizedCache("fp8", model.config)
    except ValueError:
        pytest.skip("this transformers has no fp8 cache")
    parts = [model(chunk, past_key_values=cache).logits for chunk in ids.split([16] + [1] * 8, dim=1)]
    expected = model(ids).logits
    assert 0 < (torch.cat(parts, 1) - expected).abs().mean() < 0.1 * expected.std()


@torch.no_grad()
def test_assisted_decoding_equals_greedy_or_is_refused(switches):
    model, assistant = tiny_model(**switches), tiny_model(seed=3)
    ids, options = tokens(1, 9), {"max_new_tokens": 10, "do_sample": False}
    if LINEAR in model.config.layer_types:
        with pytest.raises(ValueError, match="not supported with stateful models"):
            model.generate(ids, assistant_model=assistant, **options)
    else:
        assisted = model.generate(ids, assistant_model=assistant, **options)
        assert assisted.tolist() == model.generate(ids, **options).tolist()


@torch.no_grad()
def test_eager_equals_sdpa(switches):
    model = tiny_model(**switches)
    ids = tokens(2, 19)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    expected = model(ids, attention_mask=mask).logits
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    out = model(ids, attention_mask=mask, output_attentions=True)
    assert_close(out.logits[mask.bool()], expected[mask.bool()], **TOLERANCE[torch.float32])
    assert len(out.attentions or ()) == model.config.layer_types.count("full_attention")


def gradients(model, ids, labels, **kwargs):
    model.zero_grad()
    model(ids, labels=labels, **kwargs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_gradient_checkpointing_changes_nothing(switches):
    model = tiny_model(**switches | AUXILIARY).train()
    ids = tokens(2, 18)
    expected = gradients(model, ids, ids)
    for reentrant in (False, True):
        checkpointed = copy.deepcopy(model)
        checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
        checkpointed.enable_input_require_grads()
        for name, gradient in gradients(checkpointed, ids, ids).items():
            assert_close(gradient, expected[name], msg=name)


def test_gradients_match_the_naive_twins(switches):
    """Eager attention, looped experts and one-token steps of linear attention against the fast paths."""
    model = tiny_model(**switches)
    ids = tokens(2, 11)
    expected = gradients(model, ids, ids, use_cache=False)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    for name, gradient in gradients(model, ids, ids, use_cache=False).items():
        assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=name)


def test_accumulation_equals_the_big_batch(switches):
    model = tiny_model(**switches)
    ids = tokens(4, 12)
    labels = ids.clone()
    labels[1, 3:] = labels[2, :5] = -100  # unequal counts: a mean of means would differ
    expected = gradients(model, ids, labels)
    items = (labels[:, 1:] != -100).sum()
    model.zero_grad()
    for i in range(4):
        model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=items).loss.backward()
    for name, p in model.named_parameters():
        assert_close(p.grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_random_tokens_never_score_below_ln_vocab(switches):
    """A model that sees its labels, by a leak or by an unshifted loss, learns to copy random tokens."""
    model = tiny_model(**switches | AUXILIARY).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(40):
        ids = tokens(16, 24, seed=step)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        ids = tokens(64, 24, seed=1000)
        loss = model.eval()(ids, labels=ids).loss.item()
    assert math.log(BASE["vocab_size"] - 1) * 0.995 < loss < math.log(BASE["vocab_size"]) * 1.25


@torch.no_grad()
def test_save_and_load(switches, dtype, tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_model(dtype, **switches)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    for parameter in loaded.parameters():
        parameter.data = parameter.data.clone()  # as aligned in memory as the model's, or products round otherwise
    ids = tokens(2, 15)
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


def test_state_of_linear_layers_is_fp32():
    model = tiny_model(torch.bfloat16, layer_types=[LINEAR] * 3)
    cache = model(tokens(1, 5)).past_key_values
    assert cache.layers[1].recurrent_states[0].dtype == torch.float32
