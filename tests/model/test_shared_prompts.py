"""Computing a shared prompt once gives what computing it for each completion gives: values, gradients, samples."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from r1llama.model import moe_blocks

from .conftest import ATTENTION, MLP, tiny_model, tokens

CASES = ATTENTION | {"latent-small-rank": ATTENTION["latent"] | {"kv_lora_rank": 5}}  # absorbed, also in training
CASES |= {f"{name}-experts": ATTENTION[name] | MLP["experts"] for name in ("grouped", "latent+linear")}
PROMPT = 7
LENGTHS = {"mixed": [7, 4, 6], "one": [6], "long": [7] * 4}  # of the distinct prompts
GROUPS = {"mixed": [0, 1, 0, 2, 1, 0], "one": [0, 0, 0], "long": [3, 1, 0, 2]}  # 3, 2, 1; all equal; all different
COMPLETIONS = [5, 3, 1, 5, 2, 4]


def batch(kind="mixed"):
    """Ids and mask `(B, 12)`: prompts padded on the left to 7 tokens, completions on the right to 5."""
    ids = torch.zeros(len(GROUPS[kind]), PROMPT + 5, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(GROUPS[kind]):
        start, end = PROMPT - LENGTHS[kind][prompt], PROMPT + COMPLETIONS[i]
        ids[i, start:PROMPT] = tokens(PROMPT - start, seed=prompt)
        ids[i, PROMPT:end] = tokens(end - PROMPT, seed=10 + i)
        mask[i, start:end] = 1
    return ids, mask


def log_probs(model, ids, mask, shared):
    """Of the completions' tokens, `(B, 5)`; 0 for padding."""
    if shared:
        hidden = model.model(ids, attention_mask=mask, prompt_length=PROMPT).last_hidden_state
    else:
        hidden = model.model(ids, attention_mask=mask).last_hidden_state[:, PROMPT - 1 :]
    log_probs = model.lm_head(hidden[:, :-1]).log_softmax(-1)
    return log_probs.gather(-1, ids[:, PROMPT:, None]).squeeze(-1) * mask[:, PROMPT:]


def results(model, ids, mask, shared):
    """Log-probabilities, gradients of a loss, and the loads of the experts."""
    model.zero_grad()
    values = log_probs(model.get_base_model() if hasattr(model, "peft_config") else model, ids, mask, shared)
    advantages = torch.linspace(-2, 1, len(ids))[:, None]
    (values * advantages).mean().backward()
    loads = [block.load for block in moe_blocks(model)]
    for block in moe_blocks(model):
        block.load = None
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return values.detach(), gradients, loads


def assert_same(actual, expected):
    """To 1e-5 of the largest number: that of a loss of order 1."""
    for one, other in zip(actual, expected, strict=True):
        values = other.values() if isinstance(other, dict) else other
        largest = max((x.abs().max().item() for x in values), default=1)
        assert_close(one, other, atol=1e-5 * max(largest, 1), rtol=1e-5)


@pytest.fixture(params=CASES)
def switches(request):
    return CASES[request.param]


@pytest.mark.parametrize("kind", GROUPS)
def test_equals_the_plain_forward(switches, kind):
    model = tiny_model(**switches).train()
    assert_same(results(model, *batch(kind), True), results(model, *batch(kind), False))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("case", ["latent", "grouped+linear", "latent+linear-experts"])
def test_with_gradient_checkpointing(case, reentrant):
    model = tiny_model(**CASES[case]).train()
    expected = results(model, *batch(), False)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_same(results(model, *batch(), True), expected)


@pytest.mark.parametrize("case", ["grouped-experts", "latent", "latent+linear-experts"])
def test_with_eager_attention_and_looped_experts(case):
    model = tiny_model(**CASES[case]).train()
    expected = results(model, *batch(), False)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    assert_same(results(model, *batch(), True), expected)


@pytest.mark.parametrize("case", ["grouped", "latent", "latent+linear"])
def test_with_adapters(case):
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny_model(**CASES[case]), config).train()
    actual, expected = results(model, *batch(), True), results(model, *batch(), False)
    assert any(gradient.any() for gradient in expected[1].values())
    assert_same(actual, expected)


@torch.no_grad()
def test_without_gradients_in_bf16(switches):
    """To rounding: an expert's choice may turn on it."""
    model = tiny_model(torch.bfloat16, **switches)
    actual, expected = log_probs(model, *batch(), True), log_probs(model, *batch(), False)
    assert (actual - expected).abs().median() < 0.05


def rows_computed(model):
    """A list that each forward of the backbone adds its number of rows to."""
    rows = []
    model.model.register_forward_hook(lambda module, args, output: rows.append(len(output.last_hidden_state)))
    return rows


@torch.no_grad()
def test_rollouts_are_the_same_tokens(switches):
    model = tiny_model(**switches)
    prompts, mask = (x[:, :PROMPT] for x in batch())
    options = {"attention_mask": mask, "do_sample": True, "max_new_tokens": 9}
    rows = rows_computed(model)
    torch.manual_seed(0)
    shared = model.generate(prompts, **options)
    assert rows == [3] + [6] * 8
    model.shares_prompts = False
    torch.manual_seed(0)
    assert shared.tolist() == model.generate(prompts, **options).tolist()
    assert rows[9:] == [6] * 9


@torch.no_grad()
def test_rollouts_where_sharing_does_not_apply(switches):
    """A static cache, no cache, a cache with a past, all prompts different."""
    model = tiny_model(**switches)
    plain = copy.deepcopy(model)
    plain.shares_prompts = False
    rows = rows_computed(model)
    prompts, options = tokens(1, PROMPT).repeat(3, 1), {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    for changes in ({"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}):
        assert model.generate(prompts, **options, **changes).tolist() == plain.generate(prompts, **options).tolist()
    past = model(prompts[:, :4]).past_key_values
    continued = model.generate(prompts, past_key_values=past, **options)
    different = tokens(3, PROMPT)
    assert continued.tolist() == plain.generate(prompts, **options).tolist()
    assert model.generate(different, **options).tolist() == plain.generate(different, **options).tolist()
    assert set(rows) == {3}


def test_refuses_what_it_cannot_lay_out():
    model = tiny_model().model
    ids, mask = batch()
    for length in (0, ids.shape[1]):
        with pytest.raises(ValueError, match=f"prompt_length is {length}: of 12 tokens"):
            model(ids, attention_mask=mask, prompt_length=length)
    with pytest.raises(ValueError, match="no embeddings, positions or cache"):
        model(inputs_embeds=model.embed_tokens(ids), attention_mask=mask, prompt_length=PROMPT)
    model = tiny_model(num_mtp_layers=1).train()
    model.mtp.keep_labels(model, (), {"labels": ids[:, PROMPT - 1 :]})
    with pytest.raises(ValueError, match="set mtp_loss_coef to 0"):
        model.model(ids, attention_mask=mask, prompt_length=PROMPT)
