"""What SFT learns, token by token, in the batches that the stage trains on; and its long-context form."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from r1llama import R1LlamaConfig
from r1llama.data.chat import TEMPLATES
from r1llama.data.tokenizer import train_tokenizer
from r1llama.model import extend_context
from r1llama.training import sft
from r1llama.training.context import with_rope
from r1llama.training.recipe import RecipeError

from .conftest import argv, assert_same_weights, json_lines, tiny_config, write_jsonl

EOS = "<|end_of_text|>"
ANSWERS = ["two", "three plus one is four", "no", "<think>a b</think><answer>c</answer>", "x" * 40, "y"] * 3


@pytest.fixture(scope="module")
def chat_dir(tmp_path_factory):
    """A tiny Llama with the template of r1llama's models."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = train_tokenizer([], 300, TEMPLATES["r1llama"].read_text(encoding="utf-8"))
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chats():
    return [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": a}] for i, a in enumerate(ANSWERS)]


# rows, the recipe's keys, and what is learned of each row
SHAPES = {
    "text": ([{"prompt": f"q{i} ", "completion": a} for i, a in enumerate(ANSWERS)], {}, [a + EOS for a in ANSWERS]),
    "chat": (
        [{"prompt": chat[:1], "completion": chat[1:]} for chat in chats()],
        {},
        [f"{a}<|im_end|>\n" for a in ANSWERS],
    ),
    "assistant only": (
        [{"messages": [*chat, *chats()[-1]]} for chat in chats()],
        {"assistant_only_loss": True},
        [part for a in ANSWERS for part in (f"{a}<|im_end|>", "y<|im_end|>")],
    ),
}
FORMS = {
    "padded": {},
    "packed rows": {"packing": True},
    "without padding": {"padding_free": True, "max_length": None},
}


@pytest.fixture
def batches(monkeypatch):
    """Every batch of the stage's training, before the model sees it."""
    seen, step = [], sft.SFTStageTrainer.training_step

    def record(self, model, inputs, *args):
        seen.append({name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)})
        return step(self, model, inputs, *args)

    monkeypatch.setattr(sft.SFTStageTrainer, "training_step", record)
    return seen


def recipe_of(folder, rows, tmp_path, **changes):
    return {
        "model_name_or_path": str(folder),
        "dataset_name": str(write_jsonl(tmp_path / "rows.jsonl", rows)),
        "output_dir": str(tmp_path / "out"),
        "max_length": 128,
        "max_steps": 1,
        "per_device_train_batch_size": 18,
        "optim": "sgd",
        "learning_rate": 0.1,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "save_strategy": "no",
    } | changes


def learned(batch, tokenizer) -> list[str]:
    """The runs of labelled tokens, decoded."""
    runs = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        previous = -100
        for token, label in zip(ids.tolist(), labels.tolist(), strict=True):
            assert label in (-100, token)
            if label != -100:
                runs = runs if previous != -100 else [*runs, []]
                runs[-1].append(token)
            previous = label
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("shape", SHAPES)
def test_completions_and_their_ends_are_learned_and_nothing_else(chat_dir, tmp_path, batches, shape):
    rows, keys, expected = SHAPES[shape]
    tokenizer, losses = AutoTokenizer.from_pretrained(chat_dir), {}
    for form, changes in FORMS.items():
        out = tmp_path / form.replace(" ", "_")
        recipe = recipe_of(chat_dir, rows, tmp_path, output_dir=str(out), **keys | changes)
        sft.main(argv(recipe, tmp_path / "r.yaml"))
        assert sorted(learned(batches[-1], tokenizer)) == sorted(expected), form
        (log,) = [log for log in json_lines(out / "metrics.jsonl") if "loss" in log]
        losses[form] = log["loss"]
        real = batches[-1].get("attention_mask", batches[-1]["input_ids"] != tokenizer.pad_token_id).sum().item()
        assert log["num_tokens"] == real
        assert_same_weights(tmp_path / "padded", out, rtol=0, atol=2e-6)
    assert batches[1]["input_ids"].shape[0] > 1
    assert "attention_mask" not in batches[1]
    assert batches[2]["input_ids"].shape[0] == 1
    assert max(losses.values()) - min(losses.values()) < 1e-6


def test_rows_are_not_packed_behind_padding_where_experts_are_balanced(chat_dir, expert_dir, tmp_path, batches):
    rows, keys, _ = SHAPES["text"]
    sft.main(argv(recipe_of(expert_dir, rows, tmp_path, packing=True, **keys), tmp_path / "r.yaml"))
    assert batches[0]["input_ids"].shape[0] == 1


YARN = {"rope_type": "yarn", "factor": 4.0}


def test_a_longer_context_by_recipe(tmp_path, chat_dir, batches):
    """From 128 to 512 tokens, and from there to 1,024: the saved config says so, and a text of that length is learned
    about as well as a short one."""
    short, (text,) = [{"text": "abc " * 20}], [{"text": "abc " * 120}]
    recipe = recipe_of(chat_dir, short * 4, tmp_path, max_steps=30, optim="adamw_torch", learning_rate=3e-3)
    sft.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / "short")))
    with pytest.raises(RecipeError, match=r"exceeds the .* extend .*`rope_parameters: {rope_type: yarn, factor: 4}`"):
        sft.main(argv(recipe, tmp_path / "r.yaml", max_length=512))

    write_jsonl(tmp_path / "rows.jsonl", [text] * 4)
    longer = {
        "model_name_or_path": str(tmp_path / "short"),
        "max_length": 512,
        "rope_parameters": YARN,
        "max_steps": 3,
    }
    sft.main(argv(recipe, tmp_path / "r.yaml", **longer))
    assert batches[-1]["input_ids"].shape[1] > 480
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.max_position_embeddings == 512
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
    assert dict(config.rope_parameters) == rope
    before = [log["loss"] for log in json_lines(tmp_path / "short" / "metrics.jsonl") if "loss" in log]
    after = [log["loss"] for log in json_lines(tmp_path / "out" / "metrics.jsonl") if "loss" in log]
    assert all(map(math.isfinite, after))
    assert after[-1] < after[0] < 0.6 * before[0]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.rotary_emb.rope_type == "yarn"

    again = longer | {"model_name_or_path": str(tmp_path / "out"), "max_length": 1024, "max_steps": 1}
    further = {"rope_parameters": '{"factor": 8.0}', "output_dir": str(tmp_path / "further")}
    sft.main(argv(recipe, tmp_path / "r.yaml", **again | further))
    config = AutoConfig.from_pretrained(tmp_path / "further")
    assert dict(config.rope_parameters) == rope | {"factor": 8.0}
    assert config.max_position_embeddings == 1024


@pytest.mark.parametrize(
    "latent", [{}, {"kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}]
)
def test_rope_parameters_do_what_extend_context_does(latent):
    config = R1LlamaConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=1, max_position_embeddings=64, **latent
    )
    once = with_rope(config, YARN, 256)
    assert once.to_dict() == extend_context(config, 4).to_dict()
    assert with_rope(once, {"factor": 16}, None).to_dict() == extend_context(once, 4).to_dict()
    assert with_rope(config, None, 64) is config


@pytest.mark.parametrize(
    ("rope", "length", "message"),
    [
        ({"rope_type": "yarn", "factor": 0.5}, 8, "would shorten the context from 128 tokens to 64"),
        ({"rope_type": "yarn", "factor": "far"}, 8, "`rope_parameters: "),
        ({"rope_type": "spiral", "factor": 2.0}, 8, "rope_type must be one of default, .*yarn"),
        ("{factor", 8, "`rope_parameters: {factor`"),
        (YARN, 513, r"`max_length: 513` exceeds the model's context: set it to 512 tokens or less, .* factor: 5}`"),
    ],
)
def test_contexts_that_cannot_be_are_refused(rope, length, message):
    config = LlamaConfig(hidden_size=32, num_attention_heads=2, max_position_embeddings=128)
    with pytest.raises(RecipeError, match=message):
        with_rope(config, rope, length)


def test_another_base_reaches_to_the_new_length():
    config = LlamaConfig(hidden_size=32, num_attention_heads=2, max_position_embeddings=128)
    longer = with_rope(config, {"rope_theta": 1e6}, 1000)
    assert longer.max_position_embeddings == 1000
    assert longer.rope_parameters["rope_theta"] == 1e6
    assert config.rope_parameters["rope_theta"] == 10000.0
