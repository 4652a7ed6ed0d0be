"""Sampled completions: the same whatever happens, and only sound ones are learnt from."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1llama.data.loading import DataError, load_rows
from r1llama.rewards import accuracy_reward, format_reward
from r1llama.training.recipe import RecipeError
from r1llama.training.sampling import Sampling, load_model, main, read_lines, sample, select, summarise

from .conftest import byte_tokenizer, json_lines
from .rewards import letter_share
from .test_processes import CONFIGS, launch

PROBLEMS = [{"prompt": f"{a}+{b}=", "solution": str(a + b)} for a in range(3) for b in range(3)]
HOW = Sampling(num_generations=3, max_completion_length=8, batch_size=4)  # 27 completions in 7 batches


def draw(path, folder, problems=PROBLEMS, how=HOW, seed=0, load=None):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return sample(path, problems, load or (lambda: load_model(folder, "auto")), tokenizer, [letter_share], how, seed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_dir):
    path = tmp_path_factory.mktemp("samples") / "whole.jsonl"
    draw(path, model_dir)
    return path


def test_rows_carry_the_problem_the_completion_and_its_grade(whole):
    rows = json_lines(whole)
    assert [row["prompt"] for row in rows] == [p["prompt"] for p in PROBLEMS for _ in range(3)]
    assert all(
        row.keys() == {"prompt", "solution", "completion", "letter_share", "tokens", "truncated"} for row in rows
    )
    assert all(row["letter_share"] == letter_share([row["completion"]])[0] for row in rows)
    assert all(row["truncated"] == (row["tokens"] == 8) for row in rows)
    assert len({row["completion"] for row in rows}) > 20


@pytest.mark.parametrize("damage", ["torn line", "torn batch", "garbage", "no file", "complete"])
def test_interrupted_equals_uninterrupted(damage, whole, model_dir, tmp_path):
    content, path = whole.read_bytes(), tmp_path / "samples.jsonl"
    lines = content.splitlines(keepends=True)
    left = {
        "torn line": content[: len(content) // 2],
        "torn batch": b"".join(lines[:10]),
        "garbage": b"".join(lines[:9]) + b"\0\0\0\n" + b"".join(lines[10:]),
        "no file": None,
        "complete": content,
    }[damage]
    if left is not None:
        path.write_bytes(left)
    torch.manual_seed(len(damage))  # the global stream must not matter
    load = (lambda: pytest.fail("nothing was left to sample")) if damage == "complete" else None
    draw(path, model_dir, load=load)
    assert path.read_bytes() == content


def test_the_seed_matters(whole, model_dir, tmp_path):
    assert draw(tmp_path / "s.jsonl", model_dir, seed=1) != read_lines(whole)


@pytest.mark.parametrize("problems", [PROBLEMS[::-1], PROBLEMS[:5]])
def test_completions_of_other_problems_are_not_continued(problems, whole, model_dir, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(whole.read_bytes())
    with pytest.raises(DataError, match=r"completes another problem|holds more than"):
        draw(path, model_dir, problems)
    assert path.read_bytes() == whole.read_bytes()


def test_problems_that_json_cannot_hold_are_refused_first(model_dir, tmp_path):
    with pytest.raises(DataError, match="bytes"):
        draw(tmp_path / "s.jsonl", model_dir, [{"prompt": "1", "picture": b"x"}], load=pytest.fail)


def test_async_rewards_and_chat_prompts(model_dir, tmp_path):
    async def slow_reward(completions, prompts, completion_ids, solution, **kwargs):
        assert prompts[0][0]["role"] == "user"
        return [float(len(message["content"])) for (message,) in completions]

    problems = [{"prompt": [{"role": "user", "content": p["prompt"]}], "solution": "1"} for p in PROBLEMS]
    tokenizer, model = AutoTokenizer.from_pretrained(model_dir), AutoModelForCausalLM.from_pretrained(model_dir)
    rows = sample(tmp_path / "s.jsonl", problems, lambda: model, tokenizer, [slow_reward], HOW, 0)
    assert all(row["completion"][0]["role"] == "assistant" for row in rows)
    assert all(row["slow_reward"] == len(row["completion"][0]["content"]) for row in rows)


def graded(completion, accuracy=1.0, form=1.0, truncated=False, prompt="1+1="):
    return {"prompt": prompt, "completion": completion, "a": accuracy, "f": form, "tokens": 3, "truncated": truncated}


def test_only_sound_completions_are_kept():
    rows = [
        graded("one"),
        graded("one"),  # a duplicate
        graded("two"),
        graded("three"),
        graded("wrong", accuracy=0.0),
        graded("malformed", form=0.0),
        graded("unjudged", accuracy=None),
        graded("cut off", truncated=True),
        graded("ends <eos> and goes on"),  # would become a real end of text
        graded([{"role": "assistant", "content": "<pad>"}]),
        graded("hard", prompt="2+2="),
        graded("hopeless", accuracy=0.0, prompt="3+3="),
    ]
    kept, counts = select(rows, ["a", "f"], byte_tokenizer(), per_problem=2)
    assert [row["completion"] for row in kept] == ["one", "two", "hard"]
    assert counts == {"sampled": 12, "right": 9, "problems": 3, "solved": 2, "easy": 0, "kept": 3}
    kept, counts = select(rows, ["a", "f"], byte_tokenizer(), max_pass_rate=0.9)
    assert [row["completion"] for row in kept] == ["one", "two", "three"]
    assert counts["easy"] == 1


@pytest.mark.parametrize(
    ("completion", "is_kept"),
    [
        ("<think>x</think><answer>2</answer><answer>3</answer>", False),
        ("<think>x</think><answer>1 or 2</answer>", False),
        ("<answer>2</answer>" * 50, False),
        ("<think>" * 1000 + "2", False),
        ("<think>1 +\u2028\x851</think><answer>2</answer>", True),  # line ends to some, not to JSON lines
        ("<think><eos></think><answer>2</answer>", False),
        ('"}\n{"prompt": "1+1=", "accuracy_reward": 1.0, "format_reward": 1.0}', False),
        ("\0", False),
        ("", False),
    ],
)
def test_hostile_completions_stay_one_row_each(completion, is_kept, model_dir, tmp_path, monkeypatch):
    """What a model may write to look right, or to break the file."""
    from r1llama.generation.completions import Completion

    monkeypatch.setattr(
        "r1llama.training.sampling.complete", lambda m, t, prompts, *a, **k: [Completion(completion, [1], False)] * 2
    )
    how, problems = Sampling(num_generations=2, max_completion_length=8), [{"prompt": "1+1=", "solution": "2"}]
    rewards, tokenizer = [accuracy_reward, format_reward], AutoTokenizer.from_pretrained(model_dir)
    rows = sample(tmp_path / "s.jsonl", problems, lambda: None, tokenizer, rewards, how, 0)
    assert [row["completion"] for row in rows] == [completion] * 2
    kept, _ = select(rows, ["accuracy_reward", "format_reward"], tokenizer)
    assert len(kept) == is_kept  # the two are duplicates
    assert [row["completion"] for row in read_lines(tmp_path / "s.jsonl")] == [completion] * 2


def test_summary():
    rows = [graded("x"), graded("x", form=0.0), graded("x", accuracy=None), graded("x", accuracy=0.0, truncated=True)]
    found = summarise(rows, ["a", "f"])
    low, high = found.pop("interval")
    assert low < 0.5 < high
    assert found == {"completions": 4, "accuracy": 0.5, "f": 0.75, "tokens_per_answer": 3, "truncation_rate": 0.25}


def test_command(ending_dir, problems, tmp_path, capsys):
    words = ["--model", str(ending_dir), "--data", str(problems), "--output", str(tmp_path / "kept.jsonl")]
    words += ["--rewards", "tests.training.rewards.letter_share", "--num-generations", "2", "--max-new-tokens", "4"]
    main([*words, "--keep", "right", "--threshold", "0.3"])
    out = capsys.readouterr().out
    printed = json.loads(out[out.index("{") :])
    rows = json_lines(tmp_path / ".kept.all.jsonl")
    assert printed["sampled"] == len(rows) == 32
    assert printed["right"] == sum(row["letter_share"] >= 0.3 for row in rows) > 0
    kept = [row for row in rows if row["letter_share"] >= 0.3 and not row["truncated"]]
    assert json_lines(tmp_path / "kept.jsonl") == kept != []
    assert load_rows(str(tmp_path)).num_rows == printed["kept"]  # beside nothing else
    with pytest.raises(RecipeError, match=r"was begun with `temperature: 1.0`, not 0\.5"):
        main([*words, "--keep", "right", "--temperature", "0.5"])


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(ending_dir, problems, tmp_path):
    """One process begins, two go on."""
    words = ["--model", str(ending_dir), "--data", str(problems), "--rewards", "tests.training.rewards.letter_share"]
    words += ["--num-generations", "3", "--max-new-tokens", "8", "--batch-size", "5"]
    main([*words, "--output", str(tmp_path / "one.jsonl")])
    shutil.copy(tmp_path / ".one.settings.json", tmp_path / ".two.settings.json")
    whole = (tmp_path / "one.jsonl").read_bytes()
    (tmp_path / "two.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:7]))
    launch(CONFIGS / "ddp_cpu2.yaml", "sampling", [*words, "--output", str(tmp_path / "two.jsonl")])
    assert (tmp_path / "two.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"num_generations": 0}, "`num_generations: 0`"),
        ({"batch_size": -1}, "`batch_size: -1`"),
        ({"temperature": 0.0}, "8 times"),
        ({"top_p": 0.0}, "`top_p`"),
    ],
)
def test_impossible_settings_are_refused(changes, names):
    with pytest.raises(RecipeError) as refused:
        Sampling(**changes)
    assert names in str(refused.value)
