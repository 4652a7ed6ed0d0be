"""A judge of completions: it learns what can be learnt, and what its numbers mean."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from r1llama.rewards import get_reward, required_columns
from r1llama.rewards.reward_model import encode, render
from r1llama.training import verifier
from r1llama.training.recipe import RecipeError
from r1llama.training.verifier import auc, judge

from .conftest import argv, assert_same_weights, byte_tokenizer, write_jsonl


def rollouts(problems):
    """Right ones end in "y", one of four does; completions of other lengths, so that batches are padded."""
    return [
        {
            "prompt": f"{n}?",
            "completion": "." * ((n + i) % 5) + f"<answer>{'y' if (n + i) % 4 == 0 else 'n'}</answer>",
            "accuracy_reward": float((n + i) % 4 == 0),
        }
        for n in problems
        for i in range(4)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollouts")
    write_jsonl(folder / "train.jsonl", [*rollouts(range(10, 40)), {**rollouts([99])[0], "accuracy_reward": None}])
    write_jsonl(folder / "test.jsonl", rollouts(range(50, 62)))
    return folder


@pytest.fixture(scope="module")
def recipe(model_dir, data):
    return {
        "model_name_or_path": str(model_dir),
        "dataset_name": str(data),
        "max_steps": 30,
        "save_steps": 20,
        "eval_strategy": "steps",
        "eval_steps": 30,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-2,
        "logging_steps": 10,
        "max_length": 64,
        "use_cpu": True,
        "disable_tqdm": True,
    }


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verifier")
    return folder / "out", verifier.main(argv(recipe, folder / "r.yaml", output_dir=str(folder / "out")))


def test_it_learns_a_toy_that_can_be_told_apart(trained):
    out, metrics = trained
    assert metrics["eval_auc"] > 0.99
    assert metrics["eval_pass_at_1"] == 0.25
    assert metrics["eval_best_of_4"] == metrics["eval_oracle_of_4"] == 1.0
    assert json.loads((out / "all_results.json").read_text())["eval_auc"] == metrics["eval_auc"]
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.num_labels == 1


def test_a_verifier_is_a_reward(trained):
    """By the name of its directory; a probability, whatever stands beside it in the batch."""
    out, _ = trained
    reward = get_reward(str(out))
    assert required_columns(reward) == set()
    rows = rollouts([1, 2, 3])
    columns = {"prompts": [row["prompt"] for row in rows], "completions": [row["completion"] for row in rows]}
    scores = reward(**columns)
    assert all((score > 0.5) == (row["accuracy_reward"] == 1) for score, row in zip(scores, rows, strict=True))
    assert all(0 < score < 1 for score in scores)
    alone = [reward(prompts=[row["prompt"]], completions=[row["completion"]])[0] for row in rows]
    assert scores == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_score(side, trained):
    out, _ = trained
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    texts = ["1?<answer>y</answer>", "a much longer one, <answer>n</answer>", "<pad><eos>"]
    with torch.no_grad():
        together = model(**encode(texts, tokenizer, 64, padding=True, padding_side=side, return_tensors="pt")).logits
        alone = [model(**encode([text], tokenizer, 64, return_tensors="pt")).logits[0] for text in texts]
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-5)


def test_resumed_equals_uninterrupted(recipe, trained, tmp_path):
    whole, metrics = trained
    shutil.copytree(whole / "checkpoint-20", tmp_path / "out" / "checkpoint-20")
    resumed = verifier.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / "out")))
    assert_same_weights(whole, tmp_path / "out")
    for name in ("eval_auc", "eval_loss"):
        assert resumed[name] == metrics[name]
    assert verifier.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / "out"))) == resumed  # finished


def test_one_start_of_text_and_cut_on_the_left():
    tokenizer = byte_tokenizer()
    chat = [[{"role": "user", "content": "1?"}]]
    (text,) = render(chat, [[{"role": "assistant", "content": "yes"}]], tokenizer)
    assert text == "<|user|>1?<eos><|assistant|>yes<eos>"
    assert render(["1?"], ["yes"], tokenizer) == ["1?yes"]
    tokenizer.truncation_side = "right"
    assert tokenizer.decode(encode(["12345"], tokenizer, 3)["input_ids"][0]) == "345"
    assert tokenizer.truncation_side == "right"


def test_numbers_of_the_judge():
    rows = Dataset.from_list(
        [
            {"prompt": prompt, "completion": f"<answer>{answer}</answer>"}
            for prompt, answers in {"a": [1, 2, 2, 2], "b": [5, 3, 5, 5], "c": [7, 8, 9, 7]}.items()
            for answer in answers
        ]
    )
    right = [1, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0]
    scores = [0.9, 0.1, 0.1, 0.1, 0.2, 0.8, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5]
    found = judge(rows, right, scores)
    assert found["pass_at_1"] == 4 / 12
    assert found["best_of_2"] == found["best_of_4"] == 1 / 3  # a, and not b: its wrong one scores highest
    assert found["majority_of_4"] == 1 / 3  # b
    assert found["majority_of_2"] == 2 / 3  # a tie goes to the first
    assert found["oracle_of_4"] == 2 / 3
    assert found["auc_within"] == 0.5  # 1 and 0; c has one kind only
    pairs = [
        (scores[i] > scores[j]) + (scores[i] == scores[j]) / 2
        for i in range(12)
        for j in range(12)
        if right[i] > right[j]
    ]
    assert found["auc"] == pytest.approx(np.mean(pairs))
    assert auc(np.array([True]), np.array([0.5])) is None


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"reward_column": "accuracy"}, ["`accuracy` (`reward_column`)", "accuracy_reward"]),
        ({"threshold": 2.0}, ["0 have `accuracy_reward` from 2.0 on", "nothing to tell apart"]),
        ({"max_length": 4096}, ["`max_length: 4096`", "128"]),
        ({"use_peft": True}, ["`use_peft`"]),
        ({"task": "gsm8k"}, ["`task`"]),
        ({"dataset_test_split": "validation"}, ["`dataset_name`", "validation"]),
        ({"dataset_test_split": "train"}, ["of 0 completions"]),
    ],
)
def test_what_cannot_work_is_refused(changes, names, recipe, tmp_path):
    with pytest.raises(RecipeError) as refused:
        verifier.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / "out"), **changes))
    assert all(name in str(refused.value) for name in names), refused.value
