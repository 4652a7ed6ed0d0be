"""TRL's SFTTrainer with the library's chat templates: the labels, token by token."""

import json

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from r1llama.data.chat import TEMPLATES
from r1llama.data.tokenizer import train_tokenizer
from r1llama.training import grpo, sft
from r1llama.training.recipe import RecipeError

from .conftest import argv, tiny_config, write_jsonl

MESSAGES = [
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "2", "reasoning_content": "one more"},
    {"role": "user", "content": "2+2="},
    {"role": "assistant", "content": "<think>\ntwice\n</think>\n\n4"},
]
SWITCHED = {
    None: ["<think>\none more\n</think>\n\n2", "<think>\ntwice\n</think>\n\n4"],
    True: ["one more\n</think>\n\n2", "twice\n</think>\n\n4"],
    False: ["2", "4"],
}


@pytest.fixture(scope="module", params=TEMPLATES)
def chat_dir(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    template = TEMPLATES[request.param].read_text(encoding="utf-8")
    tokenizer = train_tokenizer([], 300, template)
    LlamaForCausalLM(tiny_config(tokenizer, max_position_embeddings=512)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def learnt(folder, tmp_path, rows, **keywords) -> list[str]:
    """The runs of labelled tokens of the first row, decoded, as the real trainer's collator hands them out."""
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=SFTConfig(output_dir=str(tmp_path), max_length=512, use_cpu=True, bf16=False, **keywords),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder, padding_side="right"),
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    runs, previous = [], -100
    for label, token in zip(batch["labels"][0].tolist(), batch["input_ids"][0].tolist(), strict=True):
        assert label in (-100, token)
        if label != -100:
            runs = [*runs, []] if previous == -100 else runs
            runs[-1].append(token)
        previous = label
    return [trainer.processing_class.decode(run) for run in runs]


def end(folder):
    return "<|im_end|>" if "ChatML" in (folder / "chat_template.jinja").read_text() else "<|eot_id|>"


@pytest.mark.parametrize("thinking", SWITCHED)
def test_assistant_only_loss_learns_every_answer_and_its_end(chat_dir, tmp_path, thinking):
    longer = {"role": "user", "content": "a longer conversation, so that the first one is padded"}
    rows = [{"messages": MESSAGES}, {"messages": [longer, *MESSAGES]}]
    if thinking is not None:
        rows = [row | {"chat_template_kwargs": {"enable_thinking": thinking}} for row in rows]
    runs = learnt(chat_dir, tmp_path, rows, assistant_only_loss=True)
    assert runs == [answer + end(chat_dir) for answer in SWITCHED[thinking]]


@pytest.mark.parametrize("thinking", SWITCHED)
def test_completion_only_loss_learns_the_last_answer(chat_dir, tmp_path, thinking):
    row = {"prompt": MESSAGES[:-1], "completion": MESSAGES[-1:]}
    if thinking is not None:
        row["chat_template_kwargs"] = {"enable_thinking": thinking}
    (run,) = learnt(chat_dir, tmp_path, [row])
    assert run.rstrip("\n") == SWITCHED[thinking][-1] + end(chat_dir)


def test_a_recipe_names_a_template_and_the_model_stops_at_the_end_of_a_turn(sft_recipe, chat_dir, tmp_path):
    name = next(name for name, path in TEMPLATES.items() if path.read_text() == template_of(chat_dir))
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(chat_dir).save_pretrained(bare)
    tokenizer = AutoTokenizer.from_pretrained(chat_dir)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    data = write_jsonl(tmp_path / "chat.jsonl", [{"messages": MESSAGES}] * 8)
    changes = {"model_name_or_path": str(bare), "dataset_name": str(data), "max_length": 256, "max_steps": 1}
    sft.main(argv(sft_recipe, tmp_path / "r.yaml", chat_template_path=name, assistant_only_loss=True, **changes))
    out = tmp_path / "out"
    assert template_of(out) == template_of(chat_dir)
    stops = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert stops == tokenizer.convert_tokens_to_ids(["<|end_of_text|>", end(chat_dir)])


def template_of(folder):
    return AutoTokenizer.from_pretrained(folder).chat_template


def test_a_template_that_the_tokenizer_cannot_write_is_refused(sft_recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"`chat_template_path: r1llama` writes <\|im_start\|>, <\|im_end\|>, which"):
        sft.main(argv(sft_recipe, tmp_path / "r.yaml", chat_template_path="r1llama"))
    with pytest.raises(RecipeError, match=r"`chat_template_path`: none\.jinja is neither a chat template"):
        sft.main(argv(sft_recipe, tmp_path / "r.yaml", chat_template_path="none.jinja"))


def test_assistant_only_loss_without_marks_is_refused(sft_recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"`assistant_only_loss: true` needs .*set `chat_template_path`.*llama3\.1"):
        sft.main(argv(sft_recipe, tmp_path / "r.yaml", assistant_only_loss=True))


def test_a_format_reward_that_cannot_see_the_opened_thought_is_refused(grpo_recipe, chat_dir, tmp_path):
    rows = [{"prompt": [{"role": "user", "content": f"{i}+1="}], "solution": str(i + 1)} for i in range(4)]
    data = write_jsonl(tmp_path / "chat.jsonl", rows)
    recipe = grpo_recipe | {"model_name_or_path": str(chat_dir), "dataset_name": str(data), "max_steps": 1}
    recipe |= {"chat_template_kwargs": {"enable_thinking": True}, "reward_funcs": ["accuracy", "format"]}
    with pytest.raises(RecipeError, match=r"write `\{name: format, prefilled: true\}` for `format`"):
        grpo.main(argv(recipe, tmp_path / "r.yaml"))
    grpo.main(argv(recipe, tmp_path / "r.yaml", reward_funcs=["accuracy", {"name": "format", "prefilled": True}]))
    assert (tmp_path / "out" / "model.safetensors").exists()
