"""Rewards around other libraries: reasoning-gym's scorers with guards, and reward models."""

import json
import pickle

import pytest

from r1llama.rewards import get_reward
from r1llama.rewards.reward_model import ModelReward

score = get_reward("reasoning_gym")


def entry(name, answer, **metadata):
    return {"question": "?", "answer": answer, "metadata": {"source_dataset": name, **metadata}}


def test_oracle_answers():
    row = entry("chain_sum", "42")
    texts = [
        "<answer>42</answer>",
        "<think>x</think>42",
        "<answer>42 43</answer>",
        "<answer>142</answer>",
        "<think>42",
    ]
    assert score(texts, [row] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert score(["<answer>42</answer>"], [json.dumps(row)]) == [1.0]


def test_scorers_that_run_or_pay_anything_are_not_asked():
    countdown = entry("countdown", "1+2", numbers=[1, 2], target=3)
    run = "<answer>__import__('os').abort()</answer>"
    assert score([run, "<answer>2+1</answer>", "<answer>3</answer>"], [countdown] * 3) == [0.0, 1.0, 0.0]
    assert score([run, "<answer>8/(3-8/3)</answer>"], [entry("puzzle24", None, numbers=[3, 3, 8, 8])] * 2) == [
        0.0,
        1.0,
    ]
    assert score(["<answer>anything</answer>"], [entry("game_of_life_halting", "True")]) == [0.0]
    assert score(["<answer>text</answer>"], [entry("prime_factorization", "2 × 3")]) == [0.0]
    assert score(["<answer>x</answer>"], [entry("unknown_task", None)]) == [None]


@pytest.mark.parametrize("name", ["chain_sum", "gcd", "mini_sudoku", "number_sorting", "spell_backward", "maze"])
def test_generated_entries_accept_their_own_answer(name):
    gym = pytest.importorskip("reasoning_gym")
    for row in gym.create_dataset(name, size=3, seed=1):
        values = score([f"<answer>{row['answer']}</answer>", "<answer>nonsense</answer>"], [row] * 2)
        assert values == [1.0, 0.0]


@pytest.fixture(scope="module")
def tiny_classifier(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, "[PAD]": 1, **{c: i for i, c in enumerate("abcdefghij", start=2)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    path = tmp_path_factory.mktemp("classifier")
    config = transformers.LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_labels=1, pad_token_id=1,
    )  # fmt: skip
    transformers.LlamaForSequenceClassification(config).save_pretrained(path)
    fast.save_pretrained(path)
    return str(path)


def test_a_reward_model_scores_each_text_alike_in_any_batch(tiny_classifier):
    reward = get_reward({"name": "model", "model": tiny_classifier, "sigmoid": True, "batch_size": 2})
    completions, prompts = ["abc", "a", "bbbbbbbb", "\ud800"], ["p", "q", "abc", "x"]
    together = reward(completions, prompts)
    alone = [reward([c], [p])[0] for c, p in zip(completions, prompts, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert all(0 < value < 1 for value in together)
    chat = reward([[{"role": "assistant", "content": "abc"}]], [[{"role": "user", "content": "p"}]])
    assert chat == pytest.approx(together[:1], abs=1e-5)


def test_a_pickled_reward_model_leaves_the_weights_behind(tiny_classifier):
    reward = ModelReward(tiny_classifier)
    first = reward(["abc"], ["p"])
    assert len(pickle.dumps(reward)) < 1000
    assert pickle.loads(pickle.dumps(reward))(["abc"], ["p"]) == pytest.approx(first, abs=1e-6)
