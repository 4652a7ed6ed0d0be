"""torch.compile takes decoding with a static cache, and a training step, as one graph, and computes the same."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch.testing import assert_close
from transformers import StaticCache

from .conftest import SWITCHES, tiny_model, tokens

NAMES = ["latent-dense-yarn", "linear-dense-rope", "latent+linear-experts-rope"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SWITCHES if name not in NAMES]


@pytest.fixture(params=NAMES + SLOW)
def model(request):
    torch._dynamo.reset()
    counters.clear()
    return tiny_model(**SWITCHES[request.param])


def check_decode(model, backend):
    ids = tokens(2, 14)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits[:, 8:]
        cache = StaticCache(config=model.config, max_cache_len=32)
        model(ids[:, :8], attention_mask=mask[:, :8], past_key_values=cache)
        step = torch.compile(model, fullgraph=True, backend=backend)
        for i in range(8, 14):
            seen = torch.nn.functional.pad(mask[:, : i + 1], (0, 32 - i - 1))  # one shape for all steps
            position = torch.full((2, 1), i)
            logits = step(ids[:, [i]], attention_mask=seen, position_ids=position, past_key_values=cache).logits
            assert_close(logits[:, 0], expected[:, i - 8], atol=1e-4, rtol=1e-4)


def test_decode_is_one_graph(model):
    check_decode(model, "aot_eager")
    assert counters["stats"]["unique_graphs"] <= 2  # the second: a length that turned out to vary


def test_training_step_is_one_graph(model):
    ids = tokens(2, 14)
    model.train()
    model(ids, labels=ids).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    step = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        model.zero_grad()
        step(ids, labels=ids).loss.backward()
        for name, p in model.named_parameters():
            assert_close(p.grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_decode_through_inductor():
    torch._dynamo.reset()
    check_decode(tiny_model(**SWITCHES["latent+linear-experts-rope"]), "inductor")
