"""The distillation stage: what it adds to SFT, and what it refuses before the model loads."""

import shutil
from pathlib import Path

import pytest
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1llama.training import distill, sft, stage
from r1llama.training.recipe import RecipeError

from .conftest import argv, assert_same_weights, byte_tokenizer, json_lines, write_jsonl

TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def test_it_learns_the_tags_and_says_so(sft_recipe, tmp_path):
    """Greedy samples end up in the format, which the rates show on the way."""
    changes = {"max_steps": 60, "learning_rate": 1e-2, "log_completions_steps": 30, "per_device_train_batch_size": 16}
    distill.main(argv(sft_recipe, tmp_path / "r.yaml", tag_weights={"<think>": 5, "</answer>": 5}, **changes))
    out = tmp_path / "out"
    AutoModelForCausalLM.from_pretrained(out)
    logs = [log for log in json_lines(out / "metrics.jsonl") if "loss" in log]
    assert logs[0]["tag_emission"] < 0.5 < logs[-1]["tag_emission"] == 1
    assert logs[-1]["tag_emission/</answer>"] == 1
    assert "tag_emission/</think>" not in logs[-1]
    sampled = {log["step"]: log["sampled_format"] for log in logs if "sampled_format" in log}
    assert sampled.keys() == {30, 60}
    samples = json_lines(out / "completions" / "samples.jsonl")
    assert len(samples) == 2 * 16
    well_formed = sum(
        s["completion"].count("<think>") == 1 and s["completion"].endswith("</answer>") for s in samples[16:]
    )
    assert sampled[60] == well_formed / 16 > 0.5


def test_weight_one_is_the_sft_stage(sft_recipe, tmp_path):
    sft.main(argv(sft_recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / "sft")))
    distill.main([*argv(sft_recipe, tmp_path / "r.yaml"), "--tag_weights", "1"])
    assert_same_weights(tmp_path / "out", tmp_path / "sft")


def test_resumed_equals_uninterrupted(sft_recipe, tmp_path):
    words = argv(sft_recipe, tmp_path / "r.yaml", save_steps=2)
    distill.main(words)
    (tmp_path / "resumed").mkdir()
    shutil.copytree(tmp_path / "out" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    distill.main([*words, "--output_dir", str(tmp_path / "resumed")])
    assert_same_weights(tmp_path / "out", tmp_path / "resumed")


def test_weights_from_the_command_line_and_the_saved_recipe(sft_recipe, tmp_path):
    words = argv(sft_recipe, tmp_path / "r.yaml", max_steps=1)
    distill.main([*words, "--tag_weights", '{"<think>": 3}'])
    distill.main(["--config", str(tmp_path / "out" / "recipe.yaml"), "--output_dir", str(tmp_path / "again")])
    assert_same_weights(tmp_path / "out", tmp_path / "again")


@pytest.fixture
def refused(sft_recipe, tmp_path, monkeypatch):
    """The message of a refusal, which came before the model was loaded."""

    def too_late(*args):
        pytest.fail("the model was loaded")

    def refusal(*more, **changes):
        monkeypatch.setattr(stage, "load_model", too_late)
        with pytest.raises(RecipeError) as caught:
            distill.main([*argv(sft_recipe, tmp_path / "r.yaml", **changes), *more])
        return str(caught.value)

    return refusal


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"<think>": 0}, "`tag_weights`: <think>: 0 must be a finite number above 0"),
        ({"<think>": "ten"}, "`tag_weights`: <think>: 'ten' must be"),
        ({}, "`tag_weights` must name at least one tag"),
        ("heavy", "`tag_weights: heavy` is neither a number nor JSON"),
    ],
)
def test_weights_that_are_none(weights, message, refused):
    assert message in refused(tag_weights=weights)


def test_traces_without_a_tag(refused, tmp_path):
    rows = [{"prompt": "2+3=", "completion": "5"}, {"prompt": "<think>2+2=", "completion": "4"}]
    message = refused(dataset_name=str(write_jsonl(tmp_path / "bare.jsonl", rows)))
    assert "none of 2 rows has <think> or </think>" in message
    assert "such as row 0: '5'" in message
    assert "`task: traces`" in message


def test_the_share_of_rows_without_a_tag_is_said(sft_recipe, tmp_path, caplog):
    answers = ["<think>1</think>2", "2", "2"]
    rows = write_jsonl(tmp_path / "some.jsonl", [{"prompt": "1+1=", "completion": answer} for answer in answers])
    distill.main(argv(sft_recipe, tmp_path / "r.yaml", dataset_name=str(rows), max_steps=1))
    assert "2 of 3 rows looked at (67%) have none of" in caplog.text
    assert "the first is row 1" in caplog.text


def with_tokenizer(folder, model_dir, **changes):
    """A copy of the model whose tokenizer differs."""
    shutil.copytree(model_dir, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return {"model_name_or_path": str(folder)}


@pytest.fixture
def chats(tmp_path):
    turns = [
        {"role": "user", "content": "2+3="},
        {"role": "assistant", "content": "<think>2+3</think><answer>5</answer>"},
    ]
    return {
        "messages": str(write_jsonl(tmp_path / "messages.jsonl", [{"messages": turns}] * 4)),
        "pairs": str(write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": turns[:1], "completion": turns[1:]}] * 4)),
    }


@pytest.mark.parametrize("shape", ["messages", "pairs"])
def test_a_template_that_drops_thoughts(shape, chats, refused, model_dir, tmp_path):
    """The real template of DeepSeek-R1's distilled models."""
    path = TEMPLATES / "deepseek_r1_distill.jinja"
    changes = with_tokenizer(tmp_path / "stock", model_dir, chat_template=path.read_text())
    changes |= {"dataset_name": chats[shape]}
    assert "the chat template drops the thoughts from an answer" in refused(**changes)
    assert "drops the thoughts" in refused(dataset_name=chats[shape], chat_template_path=str(path))


@pytest.mark.parametrize(
    "keys",
    [{"chat_template_path": str(TEMPLATES / "deepseek_r1_distill_training.jinja")}, {"assistant_only_loss": True}],
)
def test_a_template_that_keeps_thoughts_learns_the_tags_of_answers_alone(keys, chats, sft_recipe, model_dir, tmp_path):
    """TRL takes the training template by itself when it needs to know the answers."""
    stock = (TEMPLATES / "deepseek_r1_distill.jinja").read_text()
    changes = with_tokenizer(tmp_path / "stock", model_dir, chat_template=stock)
    shape = "messages" if "assistant_only_loss" in keys else "pairs"
    changes |= {"dataset_name": chats[shape], "max_length": 128, "max_steps": 1, **keys}
    distill.main(argv(sft_recipe, tmp_path / "r.yaml", **changes))
    logs = json_lines(tmp_path / "out" / "metrics.jsonl")
    assert "tag_emission/</think>" in logs[0]


def test_a_tag_that_is_a_special_token(refused, model_dir, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    shutil.copytree(model_dir, tmp_path / "special")
    tokenizer.save_pretrained(tmp_path / "special")
    assert "<think> is a special token" in refused(model_name_or_path=str(tmp_path / "special"))
