"""Distillation from a teacher's probabilities, on students and teachers of a few thousand weights."""

import shutil

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from trl import DistillationConfig

from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.training import distill, stage
from r1llama.training.recipe import RecipeError
from r1llama.training.teacher import TeacherTrainer, completion_ids

from .conftest import argv, assert_same_weights, byte_tokenizer, json_lines, tiny_config, write_jsonl


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    """Wider than the student, of another architecture, with the same tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("teacher"), byte_tokenizer()
    torch.manual_seed(1)
    config = tiny_config(tokenizer, hidden_size=48, initializer_range=0.3).to_diff_dict()
    R1LlamaForCausalLM(R1LlamaConfig(**config, kv_lora_rank=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def teacher_recipe(sft_recipe, teacher_dir):
    recipe = {key: value for key, value in sft_recipe.items() if key != "max_length"}
    return recipe | {"teacher_model_name_or_path": str(teacher_dir), "max_completion_length": 40}


@pytest.fixture(scope="module")
def frank_dir(tmp_path_factory, teacher_dir):
    """A teacher that says the same at every token: soon learned."""
    folder = tmp_path_factory.mktemp("frank")
    model = AutoModelForCausalLM.from_pretrained(teacher_dir)
    model.model.embed_tokens.weight.data[:] = model.model.embed_tokens.weight.data[0].clone()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher_dir).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("lmbda", [0.0, 0.5, 1.0])
def test_a_student_comes_nearer_and_resumes_exactly(lmbda, teacher_recipe, frank_dir, tmp_path):
    """With the student's completions, the dataset's, or both; in micro-batches; resumed in the third epoch."""
    changes = {"lmbda": lmbda, "max_steps": 12, "save_steps": 10, "learning_rate": 1e-2, "log_completions_steps": 6}
    changes |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_completion_length": 12}
    words = argv(teacher_recipe, tmp_path / "r.yaml", teacher_model_name_or_path=frank_dir, **changes)
    distill.main(words)
    out = tmp_path / "out"
    AutoModelForCausalLM.from_pretrained(out)
    logs = [log for log in json_lines(out / "metrics.jsonl") if "loss" in log]
    assert logs[-1]["loss"] < 0.5 * logs[0]["loss"]
    own = [log["on_policy"] for log in logs]
    assert (0 < sum(own) < 12) if lmbda == 0.5 else set(own) == {lmbda}
    assert {sample["step"] for sample in json_lines(out / "completions" / "samples.jsonl")} == {6, 12}

    (tmp_path / "resumed").mkdir()
    shutil.copytree(out / "checkpoint-10", tmp_path / "resumed" / "checkpoint-10")
    distill.main([*words, "--output_dir", str(tmp_path / "resumed")])
    assert_same_weights(out, tmp_path / "resumed")


def test_the_loss_along_the_datas_completions_is_the_divergence_written_out(teacher_dir, tmp_path):
    """Forward KL, mean over the tokens of the completions, in chat and in text; on r1llama with experts."""
    tokenizer, teacher = byte_tokenizer(), AutoModelForCausalLM.from_pretrained(teacher_dir)
    tokenizer.padding_side = "left"
    chats = [
        {"prompt": [{"role": "user", "content": question}], "completion": [{"role": "assistant", "content": answer}]}
        for question, answer in (("2+3=", "<think>2+3</think>5"), ("1=", "1"))
    ]
    texts = [{"prompt": "2+3=", "completion": "5"}, {"prompt": "7+1=", "completion": "<think>8</think>8"}]
    for rows in (chats, texts):
        torch.manual_seed(0)
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        student = R1LlamaForCausalLM(R1LlamaConfig(**tiny_config(tokenizer).to_diff_dict(), **experts))
        expected, tokens = 0.0, 0
        for row in rows:
            prompt = row["prompt"]
            if not isinstance(prompt, str):
                prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            prompt_ids = tokenizer(prompt)["input_ids"]
            ids = prompt_ids + completion_ids(row, tokenizer)
            assert ids[-1] == tokenizer.eos_token_id
            p, q = (
                m(torch.tensor([ids])).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1) for m in (teacher, student)
            )
            expected += (p.exp() * (p - q)).sum().item()
            tokens += len(p)
        arguments = DistillationConfig(
            output_dir=str(tmp_path), beta=0.0, per_device_eval_batch_size=2, use_cpu=True, bf16=False
        )
        trainer = TeacherTrainer(
            student,
            teacher,
            arguments,
            lmbda=0.0,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected / tokens, rel=1e-5)


@pytest.fixture
def refused(teacher_recipe, tmp_path, monkeypatch):
    def too_late(*args):
        pytest.fail("the model was loaded")

    def refusal(**changes):
        monkeypatch.setattr(stage, "load_model", too_late)
        with pytest.raises(RecipeError) as caught:
            distill.main(argv(teacher_recipe, tmp_path / "r.yaml", **changes))
        return str(caught.value)

    return refusal


def test_another_vocabulary(refused, teacher_dir, tmp_path):
    shutil.copytree(teacher_dir, tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    more = len(tokenizer)
    tokenizer.add_tokens(["<more>"])
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config(tokenizer)).save_pretrained(tmp_path / "other")
    key = {"teacher_model_name_or_path": str(tmp_path / "other")}
    message = refused(**key)  # the student's tokenizer, and a larger embedding
    assert f"has `vocab_size: {more + 1}`, and the student {more}" in message
    tokenizer.save_pretrained(tmp_path / "other")
    message = refused(**key)
    assert f"1 of {more + 1} tokens differ: '<more>' is missing for the student and {more} for the teacher" in message


def test_teachers_that_are_none(refused, teacher_dir, tmp_path):
    message = refused(teacher_model_name_or_path="./nowhere")
    assert message.startswith("`teacher_model_name_or_path: ./nowhere` does not exist")
    shutil.copytree(teacher_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert "holds no weights" in refused(teacher_model_name_or_path=str(tmp_path / "bare"))


def test_rows_that_do_not_fit(refused, problems, tmp_path, caplog):
    assert "prompt, solution, of which no demonstration can be made" in refused(dataset_name=str(problems), lmbda=0.0)
    assert "`dataset_streaming: true`" in refused(dataset_streaming=True)
    assert "`lmbda: 1.5` must lie in [0, 1]" in refused(lmbda=1.5)
    assert "16 rows do not fill one step of 32" in refused(per_device_train_batch_size=32)
    rows = [{"prompt": "1=", "completion": "1"}] * 2 + [{"prompt": "1=", "completion": "1" * 50}]
    changes = {"dataset_name": str(write_jsonl(tmp_path / "long.jsonl", rows)), "lmbda": 0.0}
    assert "2 rows do not fill" in refused(**changes)
    assert "1 of 3 completions are longer than `max_completion_length: 40`" in caplog.text


def test_the_teacher_may_be_named_on_the_command_line(teacher_recipe, tmp_path):
    recipe = {key: value for key, value in teacher_recipe.items() if key != "teacher_model_name_or_path"}
    words = argv(recipe, tmp_path / "r.yaml", max_steps=1)
    distill.main([*words, f"--teacher_model_name_or_path={teacher_recipe['teacher_model_name_or_path']}"])
    assert "on_policy" in json_lines(tmp_path / "out" / "metrics.jsonl")[0]
