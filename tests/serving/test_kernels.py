import pytest
import torch

from .models import tiny_model

kernels = pytest.importorskip("r1llama.serving.kernels", reason="vLLM is not installed", exc_type=ImportError)

N = 40_000


def test_tokens_are_sampled_by_their_probabilities():
    torch.manual_seed(0)
    logits = torch.tensor([-torch.inf, 2.0, -3.0, 0.5, -torch.inf, 1.0, -9.0, -torch.inf])
    counts = kernels.sample(logits.expand(N, -1)).bincount(minlength=8)
    expected = N * logits.softmax(-1)
    assert counts[logits.isinf()].sum() == 0
    assert ((counts - expected).abs() <= 4 * expected.sqrt() + 1).all()
    assert kernels.sample(logits.expand(2, -1) * torch.nan).max() < 8  # an id that the embedding has


def test_an_engine_samples_by_it(serve, monkeypatch):
    from vllm.v1.sample.ops import topk_topp_sampler

    monkeypatch.setattr(topk_topp_sampler, "compiled_random_sample", None)
    serve(tiny_model())
    logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(0)) * 3
    order = logits.sort(descending=True)
    for k, p in [(None, None), (2, None), (None, 0.7)]:
        kept = torch.ones_like(logits, dtype=torch.bool)
        if k:
            kept[:, k:] = False
        if p:
            kept = order.values.softmax(-1).cumsum(-1).roll(1) < p
            kept[:, 0] = True
        filtered = torch.full_like(logits, -torch.inf).scatter(
            -1, order.indices, order.values.masked_fill(~kept, -torch.inf)
        )
        filters = [None if value is None else torch.full((5,), value) for value in (k, p)]
        torch.manual_seed(1)
        tokens, _ = topk_topp_sampler.TopKTopPSampler()(logits.clone(), {}, *filters)
        torch.manual_seed(1)
        assert tokens.tolist() == kernels.sample(filtered).tolist()
