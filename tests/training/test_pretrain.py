"""Pretraining: packed documents learn as separate ones would, runs resume exactly, schedules are kept."""

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1llama import R1LlamaConfig
from r1llama.data.packing import pack, tokenise
from r1llama.training import pretrain
from r1llama.training.collator import PackedCollator
from r1llama.training.recipe import RecipeError

from .conftest import argv, assert_same_weights, byte_tokenizer, json_lines, tiny_config, write_jsonl
from .test_processes import CONFIGS, launch

LENGTHS = [3, 70, 1, 20, 200, 0, 9]  # in bytes, which are the tokens


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Forty short texts and long ones, as JSON lines."""
    rows = [{"text": f"{i} " + "abcdefghij"[i % 10] * LENGTHS[i % len(LENGTHS)]} for i in range(40)]
    return write_jsonl(tmp_path_factory.mktemp("data") / "documents.jsonl", rows)


@pytest.fixture
def recipe(tmp_path, documents, tokenizer):
    """Six steps of a tiny r1llama from scratch: linear attention, experts and multi-token prediction."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    switches = {
        "layer_types": ["full_attention", "linear_attention"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "aux_loss_alpha": 0.01,
        "num_mtp_layers": 1,
    }
    values = R1LlamaConfig(**tiny_config(tokenizer).to_diff_dict() | switches).to_diff_dict()
    for key in ("vocab_size", "eos_token_id", "pad_token_id", "bos_token_id"):
        values.pop(key, None)
    (tmp_path / "model.json").write_text(json.dumps(values))
    return {
        "config_name": str(tmp_path / "model.json"),
        "tokenizer_name": str(tmp_path / "tokenizer"),
        "dataset_name": str(documents),
        "output_dir": str(tmp_path / "out"),
        "max_length": 32,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }


def logs_of(folder):
    return [log for log in json_lines(folder / "metrics.jsonl") if "loss" in log]


def interrupt(run, copy, step):
    """What a run that ended after `step` would have left."""
    copy.mkdir()
    shutil.copytree(run / f"checkpoint-{step}", copy / f"checkpoint-{step}")
    shutil.copy(run / "metrics.jsonl", copy)


def test_a_model_from_scratch(recipe, tmp_path, tokenizer, caplog):
    caplog.set_level("INFO", logger="r1llama")
    recipe["learning_rate"] = 0.01
    pretrain.main(argv(recipe, tmp_path / "r.yaml"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.model_type == "r1llama"
    assert model.config.vocab_size == len(tokenizer) == len(AutoTokenizer.from_pretrained(tmp_path / "out"))
    assert model.config.eos_token_id == tokenizer.eos_token_id
    logs = logs_of(tmp_path / "out")
    assert len(logs) == 6
    assert logs[-1]["loss"] < logs[0]["loss"]
    assert [log["num_tokens"] for log in logs] == [2 * 32 * step for step in range(1, 7)]
    assert all(log["tokens_per_second"] > 0 and 0 < log["mfu"] < 2 and log["memory/peak_gib"] > 0.1 for log in logs)
    assert all(log["loss/balance"] > 0 and log["loss/mtp"] > 0 and log["router/max_vio"] >= 0 for log in logs)
    assert "6 steps, learning rate" in caplog.text

    changes = {"config_name": None, "tokenizer_name": None, "model_name_or_path": str(tmp_path / "out")}
    pretrain.main(argv(recipe, tmp_path / "r.yaml", **changes, output_dir=str(tmp_path / "further")))
    assert logs_of(tmp_path / "further")[0]["loss"] < logs[1]["loss"]


@pytest.mark.parametrize("layers", [["full_attention"] * 2, ["linear_attention", "full_attention"]])
@pytest.mark.parametrize("flat", [False, True])
def test_packed_documents_do_not_see_each_other(tokenizer, layers, flat):
    """Logits and labels of the collated blocks are those of each piece alone."""
    torch.manual_seed(0)
    config = R1LlamaConfig(**tiny_config(tokenizer).to_diff_dict() | {"layer_types": layers, "num_mtp_layers": 1})
    model = AutoModelForCausalLM.from_config(config).eval()
    rows = [{"text": chr(97 + i) * length} for i, length in enumerate((3, 40, 1, 20, 33, 9))]
    blocks = list(pack(Dataset.from_list(rows), tokenizer, 32))
    assert len(blocks) == 3
    batch = PackedCollator(tokenizer.pad_token_id, padding_free=flat)(blocks)
    assert batch["input_ids"].shape == ((1, 96) if flat else (3, 32))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits.reshape(96, -1)
    pieces = torch.tensor([id for block in blocks for id in block["input_ids"]]).split(
        [length for block in blocks for length in block["seq_lengths"]]
    )
    with torch.no_grad():
        alone = torch.cat([model(input_ids=piece[None]).logits[0] for piece in pieces])
    torch.testing.assert_close(logits, alone, rtol=0, atol=2e-6)
    labels = [id for piece in pieces for id in [-100, *piece[1:].tolist()]]
    assert batch["labels"].flatten().tolist() == labels


def test_the_loss_of_a_block_is_that_of_its_pieces(recipe, tmp_path, tokenizer):
    """And perplexity is over tokens, whatever the batches."""
    recipe["eval_strategy"], recipe["dataset_test_split"] = "steps", "train[:9]"
    recipe["dataset_train_split"], recipe["eval_steps"] = "train[9:]", 3
    metrics = [
        pretrain.main(
            argv(recipe, tmp_path / "r.yaml", per_device_eval_batch_size=size, output_dir=str(tmp_path / f"{size}"))
        )
        for size in (1, 2, 3)
    ]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "1").eval()
    rows = json_lines(Path(recipe["dataset_name"]))[:9]
    ids = [id for ids in tokenise([row["text"] for row in rows], tokenizer) for id in ids]
    total = count = 0
    for start in range(0, len(ids) // 32 * 32, 32):
        block = ids[start : start + 32]
        cuts = [0, *(i + 1 for i, id in enumerate(block[:-1]) if id == tokenizer.eos_token_id), 32]
        for first, last in itertools.pairwise(cuts):
            piece = torch.tensor([block[first:last]])
            if piece.shape[1] > 1:
                with torch.no_grad():
                    total += model(input_ids=piece, labels=piece).loss.item() * (piece.shape[1] - 1)
                count += piece.shape[1] - 1
    for found in metrics:
        assert found["eval_loss"] == pytest.approx(total / count, abs=2e-6)
        assert found["eval_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert "eval_perplexity" in (tmp_path / "1" / "metrics.jsonl").read_text()


def test_resumed_equals_uninterrupted(recipe, tmp_path):
    recipe |= {"shuffle_dataset": True, "save_steps": 2, "gradient_accumulation_steps": 2, "max_steps": 8}
    pretrain.main(argv(recipe, tmp_path / "r.yaml"))
    interrupt(tmp_path / "out", tmp_path / "again", 4)
    pretrain.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / "again")))
    assert_same_weights(tmp_path / "out", tmp_path / "again")
    before, after = logs_of(tmp_path / "out"), logs_of(tmp_path / "again")
    assert [log["loss"] for log in before] == [log["loss"] for log in after]
    assert [log["num_tokens"] for log in before] == [log["num_tokens"] for log in after]


SOURCES = {
    "shuffled stream": {"shuffle_dataset": True, "shuffle_window": 9},
    "mixture, read by a worker": {"mixed": True, "shuffle_dataset": True, "dataloader_num_workers": 1},
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_stream_resumes_exactly(recipe, tmp_path, documents, source):
    changes = dict(SOURCES[source])
    if changes.pop("mixed", False):
        rows = [{"text": f"{i} other words"} for i in range(30)]
        other = write_jsonl(tmp_path / "other.jsonl", rows)
        recipe.pop("dataset_name")
        changes["datasets"] = [{"path": str(documents), "weight": 2}, {"path": str(other), "weight": 1}]
    recipe |= {"dataset_streaming": True, "save_steps": 2, "gradient_accumulation_steps": 3} | changes
    recipe |= {"max_steps": 12}  # 72 blocks: the documents have 61
    pretrain.main(argv(recipe, tmp_path / "r.yaml"))
    again = tmp_path / "again"
    interrupt(tmp_path / "out", again, 10)
    pretrain.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(again)))
    assert_same_weights(tmp_path / "out", again)
    assert [log["loss"] for log in logs_of(again)] == [log["loss"] for log in logs_of(tmp_path / "out")]
    assert [log["num_tokens"] for log in logs_of(again)] == [6 * 32 * step for step in range(1, 13)]


def test_dropout_after_a_resumed_stream_is_that_of_the_uninterrupted_run(recipe, tmp_path):
    config = json.loads((tmp_path / "model.json").read_text()) | {"attention_dropout": 0.3}
    (tmp_path / "model.json").write_text(json.dumps(config | {"layer_types": ["full_attention"] * 2}))
    recipe |= {"dataset_streaming": True, "save_steps": 2, "dataset_train_split": "train"}
    recipe |= {"eval_strategy": "steps", "eval_steps": 2, "dataset_test_split": "train", "max_eval_blocks": 3}
    metrics = pretrain.main(argv(recipe, tmp_path / "r.yaml"))
    interrupt(tmp_path / "out", tmp_path / "again", 4)
    again = pretrain.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / "again")))
    assert_same_weights(tmp_path / "out", tmp_path / "again")
    assert metrics["eval_perplexity"] == again["eval_perplexity"] > 1


def test_another_stream_is_refused_at_resuming(recipe, tmp_path):
    recipe |= {"dataset_streaming": True, "save_steps": 2, "max_steps": 2}
    pretrain.main(argv(recipe, tmp_path / "r.yaml"))
    recipe["max_steps"] = 4
    with pytest.raises(RecipeError, match=r"`shuffle_window: 7`, but the stream of .* was made with 1000: set it"):
        pretrain.main(argv(recipe, tmp_path / "r.yaml", shuffle_window=7))
    with pytest.raises(RecipeError, match="`dataloader_num_workers: 2`: each would read the stream"):
        pretrain.main(argv(recipe, tmp_path / "r.yaml", dataloader_num_workers=2))
    with pytest.raises(RecipeError, match="`eval_strategy` on a stream: set `max_eval_blocks`"):
        pretrain.main(argv(recipe, tmp_path / "r.yaml", eval_strategy="steps", dataset_test_split="train"))
    local = {"dataset_streaming": False, "output_dir": str(tmp_path / "local")}
    pretrain.main(argv(recipe, tmp_path / "r.yaml", **local))
    with pytest.raises(RecipeError, match=r"stream\.json is missing: the checkpoint is of a run without"):
        pretrain.main(argv(recipe, tmp_path / "r.yaml", output_dir=str(tmp_path / "local"), max_steps=6))


WSD = {"num_decay_steps": 3, "min_lr_ratio": 0.1, "decay_type": "linear"}


@pytest.mark.parametrize(
    ("changes", "plan", "last"),
    [
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": WSD, "warmup_steps": 2},
            "10 steps, learning rate 0.0001 at step 1, warm-up to 0.001 at step 3, stable until 0.001 at step 8, "
            "the decay to 0.0004 at step 10",
            4e-4,
        ),
        (
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
                "warmup_steps": 0.2,
                "max_steps": -1,
                "num_train_epochs": 0.5,
            },
            "16 steps, learning rate 0 at step 1, warm-up to 0.001 at step 5, a cosine to 0.000115 at step 16",
            None,
        ),
    ],
)
def test_schedules_are_printed_and_reached(recipe, tmp_path, caplog, changes, plan, last):
    caplog.set_level("INFO", logger="r1llama")
    pretrain.main(argv(recipe | {"max_steps": 10}, tmp_path / "r.yaml", **changes))
    (line,) = [r.getMessage() for r in caplog.records if "schedule: " in r.getMessage()]
    assert plan in line
    logs = logs_of(tmp_path / "out")
    assert f"{logs[-1]['learning_rate']:.3g} at step {len(logs)}" in line
    assert last is None or logs[-1]["learning_rate"] == pytest.approx(last)
    assert max(log["learning_rate"] for log in logs) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 7}, r"`warmup_steps` \(7\) take more than the run's 6 steps"),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_decay_steps": 5},
                "warmup_steps": 2,
            },
            r"`warmup_steps` \(2\) and `num_decay_steps` \(5\) take more",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, r"set `lr_scheduler_kwargs: {num_decay_steps: 1}`"),
        ({"lr_scheduler_kwargs": {"min_lr_rate": 0.1}}, "does not fit `lr_scheduler_type: linear`"),
        ({"tokenizer_name": None}, "`config_name` needs `tokenizer_name`"),
        ({"model_name_or_path": "there"}, "set one of them"),
        ({"max_length": 129}, "exceeds the model's context: set it to 128"),
        ({"max_length": None}, "`max_length` is missing"),
        ({"dataset_text_field": "story"}, "has the columns text, of which no text can be made.*Known: `story`"),
        ({"dataset_train_split": "train[:1]"}, "fewer than 32 tokens"),
        ({"assistant_only_loss": True}, "belongs to SFT"),
        ({"max_eval_blocks": 0}, "`max_eval_blocks: 0` must be above 0"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_made(recipe, tmp_path, changes, message, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lambda *args, **kwargs: pytest.fail("made a model"))
    with pytest.raises(RecipeError, match=message):
        pretrain.main(argv(recipe, tmp_path / "r.yaml", **changes))


def test_configs_that_do_not_fit_are_refused(recipe, tmp_path):
    path = tmp_path / "model.json"
    values = json.loads(path.read_text())
    for text, message in (
        (json.dumps(values | {"vocab_size": 100}), "says `vocab_size: 100`, but the tokenizer has 262 tokens"),
        (json.dumps(values | {"hidden_size": "wide"}), "`config_name: .*: "),
        ("{}", "is no JSON config with a `model_type`"),
    ):
        path.write_text(text)
        with pytest.raises(RecipeError, match=message):
            pretrain.main(argv(recipe, tmp_path / "r.yaml"))


@pytest.mark.slow
def test_two_processes_share_a_stream_and_one_continues_it(recipe, tmp_path):
    recipe |= {"dataset_streaming": True, "shuffle_dataset": True, "shuffle_window": 9, "save_steps": 2}
    words = argv(recipe, tmp_path / "r.yaml", optim="sgd", learning_rate=0.1)
    launch(CONFIGS / "ddp_cpu2.yaml", "pretrain", words)
    for name, devices in (("two", 2), ("one", 4)):
        interrupt(tmp_path / "out", tmp_path / name, 2)
        again = [*words, "--output_dir", str(tmp_path / name), "--per_device_train_batch_size", str(devices)]
        if name == "two":
            launch(CONFIGS / "ddp_cpu2.yaml", "pretrain", again)
            assert_same_weights(tmp_path / "out", tmp_path / name)
        else:
            pretrain.main(again)
            assert_same_weights(tmp_path / "out", tmp_path / name, rtol=1e-3, atol=1e-6)
        losses = [[log["loss"] for log in logs_of(tmp_path / run)] for run in ("out", name)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)
