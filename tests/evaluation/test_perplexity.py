"""Perplexity against the probabilities, one document at a time."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from r1llama.data.tokenizer import train_tokenizer
from r1llama.evaluation.perplexity import perplexity

TEXTS = ["a", "the cat sat on the mat", "3+8=11", "Straße 🦙", ""]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([])


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def naive(model, tokenizer, texts, max_length):
    logs = []
    for text in texts:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id][:max_length]
        probabilities = model(torch.tensor([ids])).logits[0].softmax(-1)
        logs += [math.log(probabilities[i, token]) for i, token in enumerate(ids[1:])]
    return math.exp(-sum(logs) / len(logs))


@pytest.mark.parametrize("max_length", [5, 100])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batches_change_nothing(model, tokenizer, max_length, batch_size):
    expected = naive(model, tokenizer, TEXTS, max_length)
    assert perplexity(model, tokenizer, TEXTS, max_length, batch_size) == pytest.approx(expected, rel=1e-5)
    assert expected > len(tokenizer) / 4  # so different documents matter


def test_a_model_that_knows_nothing_has_the_vocabularys(model, tokenizer):
    blank = LlamaForCausalLM(model.config)
    torch.nn.init.zeros_(blank.lm_head.weight)
    assert perplexity(blank, tokenizer, TEXTS, 100) == pytest.approx(len(tokenizer), rel=1e-5)


def test_nothing_to_predict_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="no document has two tokens"):
        perplexity(model, tokenizer, [""], 100)
    with pytest.raises(ValueError, match="no document has two tokens"):
        perplexity(model, tokenizer, TEXTS, max_length=1)
