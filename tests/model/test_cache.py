"""The cache layers of r1llama hold what transformers' own would hold, without copying."""

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer

from r1llama.model.cache import LatentLayer, StaticLatentLayer, prepare_cache

from .conftest import ATTENTION, tiny_config, tiny_model, tokens


def piece(S, B=2, r=6, dr=4):
    return torch.randn(B, 1, S, r), torch.randn(B, 1, S, dr)


def test_latent_layer_is_a_dynamic_layer():
    ours, peer = LatentLayer(), DynamicLayer()
    events = [5, 1, 1, "crop", 3, "reorder", 1, "repeat", 1, "copy", 200, 1, "select", 1, "reset", 4, 1]
    B = 2
    for event in events:
        if event == "copy":
            ours, peer = copy.deepcopy(ours), copy.deepcopy(peer)
        for layer in (ours, peer):
            if event == "crop":
                layer.crop(-2)
            elif event == "reorder":
                layer.reorder_cache(torch.tensor([1, 0]))
            elif event == "repeat":
                layer.batch_repeat_interleave(3)
            elif event == "select":
                layer.batch_select_indices(torch.tensor([0, 4, 5]))
            elif event == "reset":
                layer.reset()
        B = {"repeat": 6, "select": 3}.get(event, B)
        if isinstance(event, int):
            new = piece(event, B)
            assert all(map(torch.equal, ours.update(*new), peer.update(*new)))
            assert torch.equal(ours.joint, torch.cat([peer.keys, peer.values], -1))
        assert ours.get_seq_length() == peer.get_seq_length()


def test_a_token_does_not_copy_the_past():
    layer = LatentLayer()
    layer.update(*piece(1000))
    places = {layer.update(*piece(1))[0].data_ptr() for _ in range(200)}
    assert len(places) == 1


def test_a_cache_from_inference_mode_goes_on_outside_it():
    layer = LatentLayer()
    with torch.inference_mode():
        layer.update(*piece(3))
    with torch.no_grad():
        assert layer.update(*piece(1))[0].shape[2] == 4


def test_gradients_through_a_cache():
    """Two chunks through a cache give the gradients of one run."""
    model = tiny_model(**ATTENTION["latent"])
    ids = tokens(2, 12)
    gradients = []
    for splits in ([12], [7, 5]):
        model.zero_grad()
        cache = DynamicCache(config=model.config)
        logits = [model(chunk, past_key_values=cache).logits for chunk in ids.split(splits, 1)]
        torch.cat(logits, 1).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for ours, expected in zip(*gradients, strict=True):
        assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_static_latent_layer_is_a_static_layer():
    ours, peer = StaticLatentLayer(16), StaticLayer(16)
    for S in (5, 1, 1, 7):
        new = piece(S)
        assert all(map(torch.equal, ours.update(*new), peer.update(*new)))
        assert torch.equal(ours.joint, torch.cat([peer.keys, peer.values], -1))
    for layer in (ours, peer):
        layer.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(ours.keys, peer.keys)
    address = ours.joint.data_ptr()
    ours.reset()
    assert not ours.joint.any()
    assert ours.joint.data_ptr() == address


@pytest.mark.parametrize("make", [lambda c: DynamicCache(), lambda c: DynamicCache(config=c)])
@torch.no_grad()
def test_the_users_own_caches_are_fitted(make):
    model = tiny_model(**ATTENTION["latent"])
    cache = make(model.config)
    model(tokens(1, 5), past_key_values=cache)
    assert {type(layer) for layer in cache.layers} == {LatentLayer}
    cache = StaticCache(config=model.config, max_cache_len=8)
    model(tokens(1, 5), past_key_values=cache)
    assert {type(layer) for layer in cache.layers} == {StaticLatentLayer}


@torch.no_grad()
def test_offloaded_cache_keeps_its_layers():
    config = tiny_config(**ATTENTION["latent"])
    cache = prepare_cache(DynamicCache(config=config, offloading=True), config)
    assert {type(layer) for layer in cache.layers} == {DynamicLayer}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers offloads from a GPU")
@pytest.mark.parametrize("implementation", ["offloaded", "offloaded_static"])
def test_generation_with_an_offloaded_cache(implementation):
    model = tiny_model(**ATTENTION["latent"])
    ids, options = tokens(2, 8), {"max_new_tokens": 6, "do_sample": False}
    offloaded = model.generate(ids, cache_implementation=implementation, disable_compile=True, **options)
    assert offloaded.tolist() == model.generate(ids, **options).tolist()
