"""pass@1: what is counted, on scripted answers and on a real tiny model."""

import json

import pytest
import torch

from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.data.loading import DataError
from r1llama.data.tokenizer import train_tokenizer
from r1llama.evaluation.accuracy import evaluate, wilson_interval
from r1llama.evaluation.command import main

TOKENIZER = train_tokenizer([])
PROBLEMS = [{"prompt": "1+1=", "solution": "2"}, {"prompt": "12+1=", "solution": "13"}] * 3


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = R1LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        layer_types=["full_attention", "linear_attention"],
        bos_token_id=None,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
        initializer_range=0.5,
    )
    return R1LlamaForCausalLM(config)


def script(monkeypatch, model, answers):
    """Let `generate` write the given answers, padded on the right; one that ends in "..." is cut off there."""
    answers = iter(answers)

    def generate(input_ids, **kwargs):
        rows = [next(answers) for _ in input_ids]
        ids = [TOKENIZER(row.removesuffix("..."))["input_ids"] for row in rows]
        ids = [i if row.endswith("...") else [*i, TOKENIZER.eos_token_id] for i, row in zip(ids, rows, strict=True)]
        new = TOKENIZER.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")["input_ids"]
        return torch.cat([input_ids, new], dim=1)

    monkeypatch.setattr(model, "generate", generate)


def test_counts(monkeypatch, model):
    right = "<think>x</think><answer>{}</answer>"
    answers = [
        right.format(2),
        right.format(13),
        right.format(3),  # wrong, well formed
        "<answer>13</answer>",  # right, badly formed
        "",  # stops at once
        "<think>so so so...",  # cut off
    ]
    script(monkeypatch, model, answers)
    result = evaluate(model, TOKENIZER, PROBLEMS, max_new_tokens=8, batch_size=2)
    assert (result.problems, result.accuracy, result.format_rate) == (6, 3 / 6, 3 / 6)
    assert result.interval == wilson_interval(3, 6)
    assert result.truncation_rate == 1 / 6
    lengths = [7, 8, 7, 5, 1, 9]  # tags are one token, so are digits and letters, and the end counts
    assert result.tokens_per_answer == sum(lengths) / 6
    assert result.completions == [*answers[:5], "<think>so so so"]


def test_batches_change_nothing(model):
    one, many = (evaluate(model, TOKENIZER, PROBLEMS, 12, batch_size=size) for size in (1, 6))
    assert one == many
    assert len(set(one.completions)) > 1


def test_sampling_is_repeatable_and_the_mode_kept(model):
    model.train()
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(evaluate(model, TOKENIZER, PROBLEMS, 12, temperature=1.0))
    assert results[0] == results[1]
    assert model.training


def test_chat_prompts(model):
    tokenizer = train_tokenizer([])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chats = [{"prompt": [{"role": "user", "content": row["prompt"]}], "solution": row["solution"]} for row in PROBLEMS]
    assert evaluate(model, tokenizer, chats, 12) == evaluate(model, TOKENIZER, PROBLEMS, 12)


def test_no_problems_are_refused(model):
    with pytest.raises(ValueError, match="no problems"):
        evaluate(model, TOKENIZER, [], 8)


@pytest.mark.parametrize(("successes", "trials"), [(8, 10), (1, 3), (450, 500), (1, 1000)])
def test_wilson_interval_ends_where_the_score_test_rejects(successes, trials):
    share = successes / trials
    for end in wilson_interval(successes, trials):
        assert abs(share - end) == pytest.approx(1.959964 * (end * (1 - end) / trials) ** 0.5)


def test_wilson_interval_at_the_ends():
    z2 = 1.959964**2
    assert wilson_interval(0, 10) == pytest.approx((0.0, z2 / (10 + z2)))
    assert wilson_interval(10, 10) == pytest.approx((10 / (10 + z2), 1.0))


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_shares_are_refused(successes, trials):
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(successes, trials)


def test_command(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    argv = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "test.jsonl"), "--max-new-tokens", "12"]
    main([*argv, "--completions", str(tmp_path / "out.jsonl")])
    out = capsys.readouterr().out  # libraries may greet first
    printed = json.loads(out[out.index("{") :])
    expected = vars(evaluate(model, TOKENIZER, PROBLEMS, 12))
    completions = expected.pop("completions")
    assert printed == expected | {"interval": list(expected["interval"])}
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == [row | {"completion": c} for row, c in zip(PROBLEMS, completions, strict=True)]


def test_command_refuses_data_without_solutions(tmp_path):
    (tmp_path / "raw.jsonl").write_text('{"question": "1+1"}\n')
    with pytest.raises(DataError, match="no column prompt or solution, but question"):
        main(["--model", "unused", "--data", str(tmp_path / "raw.jsonl"), "--max-new-tokens", "8"])
