"""`r1llama data inspect` shows what the trainers see, and nothing else."""

import re

import pytest
from transformers import AutoTokenizer
from trl import SFTTrainer

from r1llama.training import data_command, sft
from r1llama.training.recipe import RecipeError
from tests.training.conftest import argv, write_jsonl

CHAT = [
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "<think>ü</think><answer>2</answer>"},
]


@pytest.fixture
def inspect(capsys):
    def inspect(*words):
        data_command.main(["inspect", *map(str, words)])
        return capsys.readouterr().out

    return inspect


def learned(shown: str) -> list[str]:
    return re.findall("⟦(.*?)⟧", shown, flags=re.DOTALL)


def test_rows_without_a_tokenizer(inspect, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"conversations": [{"content": "q"}, {"content": "a\x1b[2J"}]}] * 4)
    shown = inspect(path, "--rows", 2)
    assert "[user] q\n  [assistant] a\\x1b[2J" in shown  # nothing steers the terminal
    assert shown.count("--- row") == 2
    assert "4 rows: messages" in shown


def test_problems_without_a_tokenizer(inspect, problems):
    assert "prompt: 0+0=\nsolution: 0" in inspect(problems)


def test_the_mask_of_prompt_and_completion(inspect, demonstrations, model_dir):
    shown = inspect(demonstrations, "--tokenizer", model_dir, "--rows", 1)
    assert "0+0=⟦<think>0+0</think><answer>0</answer><eos>⟧" in shown
    # tags are one token each: 4 of the prompt, 4 tags, 3 + 1 digits and signs, and EOS
    assert "row 0: 13 tokens, 9 learned" in shown
    assert "16 rows, 208 tokens, 69.2% learned" in shown


def test_the_mask_is_the_trainers(inspect, sft_recipe, tmp_path, monkeypatch):
    """Token by token, against the batches that training itself takes."""
    template = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    (tmp_path / "chat.jinja").write_text(template)
    rows = [{"messages": CHAT * turns} for turns in (1, 2)]
    changes = {
        "dataset_name": str(write_jsonl(tmp_path / "rows.jsonl", rows)),
        "assistant_only_loss": True,
        "chat_template_path": str(tmp_path / "chat.jinja"),
        "max_length": 128,
        "shuffle_dataset": False,
        "per_device_train_batch_size": 1,
    }
    words = argv(sft_recipe, tmp_path / "sft.yaml", **changes)
    shown = inspect(*words)
    batches, step = [], SFTTrainer.training_step

    def watched(self, model, inputs, *rest):
        batches.append(inputs)
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(SFTTrainer, "training_step", watched)
    sft.main(words)
    tokenizer = AutoTokenizer.from_pretrained(sft_recipe["model_name_or_path"])
    trained = {
        (tokenizer.decode(batch["input_ids"][0]), tokenizer.decode(batch["input_ids"][0][batch["labels"][0] != -100]))
        for batch in batches
    }
    assert len(trained) == 2
    for text, labelled in trained:
        part = next(part for part in shown.split("---\n") if re.sub("[⟦⟧]", "", part).startswith(text))
        assert "".join(learned(part.partition("\n\n")[0])) == labelled


def test_packed_and_overlong_rows(inspect, sft_recipe, tmp_path):
    rows = [{"prompt": "1", "completion": "2" * count} for count in (2, 3, 40)]
    words = argv(sft_recipe, tmp_path / "sft.yaml", dataset_name=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    shown = inspect(*words, "--max_length", "16", "--packing", "true", "--shuffle_dataset", "false")
    assert "1⟦222<eos>⟧1⟦22<eos>⟧" in shown  # the first token of a document has nothing before it
    assert "1 rows of more than 16 tokens were left out (overlong: drop)" in shown
    assert "1 rows of more than 16 tokens were cut" in inspect(*words, "--max_length", "16", "--overlong", "truncate")
    with pytest.raises(RecipeError, match="the first with 42 tokens"):
        inspect(*words, "--max_length", "16", "--overlong", "stop")


@pytest.mark.parametrize("streaming", [False, True])
def test_blocks_of_pretraining(streaming, inspect, model_dir, tmp_path):
    (tmp_path / "a.txt").write_text("abc\ndef\nghij\n")
    recipe = {
        "dataset_name": str(tmp_path / "a.txt"),
        "tokenizer_name": str(model_dir),
        "config_name": "not read",
        "max_length": 6,
        "shuffle_dataset": False,
        "dataset_streaming": streaming,
        "max_steps": 1,
    }
    shown = inspect(*argv(recipe, tmp_path / "pretrain.yaml"), "--rows", 2)
    assert "a⟦bc<eos>⟧d⟦e⟧" in shown
    assert "f⟦<eos>⟧g⟦hij⟧" in shown


def test_problems_of_grpo(inspect, grpo_recipe, tmp_path):
    rows = [{"prompt": CHAT[:1], "solution": "2"}]
    words = argv(grpo_recipe, tmp_path / "grpo.yaml", dataset_name=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    shown = inspect(*words)
    assert "prompt: <|user|>1+1=<eos><|assistant|>\nsolution: 2" in shown
    assert "1 problems: prompt, solution" in shown


def test_colour_is_for_terminals(demonstrations, model_dir, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ids = tokenizer("1+1=2")["input_ids"]
    labels = [-100] * 4 + ids[4:]
    assert data_command._coloured(ids, labels, tokenizer) == "1+1=⟦2⟧"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert data_command._coloured(ids, labels, tokenizer) == "\033[2m1+1=\033[0m\033[32m2\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert data_command._coloured(ids, labels, tokenizer) == "1+1=⟦2⟧"


def test_nothing_or_two_things_to_inspect(inspect, tmp_path):
    for words in ([], ["a.jsonl", "--config", "b.yaml"]):
        with pytest.raises(RecipeError, match="name either a file or"):
            inspect(*words)
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: No such file"):
        inspect("--config", tmp_path / "nowhere.yaml")
