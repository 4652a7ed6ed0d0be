"""The weighted loss against per-token cross entropy with the weights written out, and the spans against the text."""

import math
import random
import re

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.data.tokenizer import TAGS, train_tokenizer
from r1llama.training.callbacks import AuxiliaryLosses
from r1llama.training.think_weighted import TagSpans, ThinkWeightedSFTTrainer

from .conftest import byte_tokenizer, tiny_config

TEXT = "So.</think><answer>5</answer>\n<think>\nIt is <think>2+3</think>\n\n<answer>a<b>"
PROMPTS = ["Use <think> here: ", "2+3 as <answer>5</answer>=", "", "x<y? "]
COMPLETIONS = [
    "<think>\nadd.</think><answer>5</answer>",
    "<think>a<b</think>\n\n<answer>no",
    "no tags",
    "</think></think>",
]


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """BPE without any tag of its own, whose tokens cross words and signs: tags share some with what is around."""
    merges = ["> <", "< /", ". </", "t h", "i n", "in k", "> Ċ", "ink >Ċ", "a n", "Ċ Ċ"]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def bytes_only() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(backend.model), pad_token=tokenizer.pad_token, eos_token=tokenizer.eos_token
    )
    plain.backend_tokenizer.pre_tokenizer = backend.pre_tokenizer
    plain.backend_tokenizer.decoder = backend.decoder
    return plain


TOKENIZERS = {
    "one token a tag": byte_tokenizer,
    "one token a byte": bytes_only,
    "merged with neighbours": merging_tokenizer,
    "r1llama's own": lambda: train_tokenizer([TEXT], 280),
}


def tag_of_each_token(tokenizer, text, weights):
    """By character positions: the tag that each token shares a character with, None for none; the heavier of two."""
    spans = [(m.start(), m.end(), tag) for tag in weights for m in re.finditer(re.escape(tag), text)]
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    touched = [[tag for a, b, tag in spans if a < end and start < b] for start, end in encoded["offset_mapping"]]
    return [max(tags, key=weights.get) if tags else None for tags in touched], encoded["input_ids"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_spans_are_where_the_text_has_the_tags(kind):
    tokenizer = TOKENIZERS[kind]()
    finder, draw = TagSpans(tokenizer, TAGS), random.Random(0)
    parts = [*TAGS, "<", ">", "</", "th", "ink", "think", "answer>", "\n", " ", ".", "é", "日", "7"]
    shares_a_token = 0
    for _ in range(300):
        text = "".join(draw.choices(parts, k=12))
        expected, ids = tag_of_each_token(tokenizer, text, dict.fromkeys(TAGS, 1.0))
        found = finder.find(torch.tensor(ids).numpy())
        covered = {i for start, stop, _ in found for i in range(start, stop)}
        assert covered == {i for i, tag in enumerate(expected) if tag}, text
        assert sorted(TAGS[tag] for _, _, tag in found) == sorted(re.findall("</?(?:think|answer)>", text))
        shares_a_token += any(len(tokenizer.decode(ids[i]).strip("<>/thinkaswer")) > 0 for i in covered)
    assert (shares_a_token > 0) == (kind == "merged with neighbours")


def rows(prompts=PROMPTS, completions=COMPLETIONS):
    return Dataset.from_list([{"prompt": p, "completion": c} for p, c in zip(prompts, completions, strict=True)])


def make_trainer(
    folder, tokenizer, model=None, kind=ThinkWeightedSFTTrainer, dataset=None, tag_weights=None, **changes
):
    if model is None:
        torch.manual_seed(0)
        model = LlamaForCausalLM(tiny_config(tokenizer))
    options = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True}
    options |= {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    options |= {"max_steps": 1, "per_device_train_batch_size": 4, "logging_steps": 1, "max_length": None}
    arguments = SFTConfig(output_dir=str(folder), save_strategy="no", **options | changes)
    keywords = {} if tag_weights is None else {"tag_weights": tag_weights}
    return kind(
        model, arguments, train_dataset=rows() if dataset is None else dataset, processing_class=tokenizer, **keywords
    )


def naive_step(model, tokenizer, weights, dataset, rate=1.0):
    """One step of gradient descent on the weighted mean of the completions' cross entropies; the loss before it."""
    total, weight_sum = 0.0, 0.0
    for row in dataset:
        tags, ids = tag_of_each_token(tokenizer, row["prompt"] + row["completion"], weights)
        tags, ids = [*tags, None], torch.tensor([*ids, tokenizer.eos_token_id])
        begins = max(1, len(tokenizer(row["prompt"])["input_ids"]))  # the first token of all is predicted by nothing
        token_weights = torch.tensor([1.0 if tag is None else weights[tag] for tag in tags])[begins:]
        loss = F.cross_entropy(model(ids[None]).logits[0, begins - 1 : -1], ids[begins:], reduction="none")
        total, weight_sum = total + (token_weights * loss).sum(), weight_sum + token_weights.sum()
    loss = total / weight_sum
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad
    return loss.item()


BATCHES = {
    "batch": {},
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "in one row": {"padding_free": True},
    "packed": {"packing": True, "max_length": 120, "per_device_train_batch_size": 4},
    "packed and accumulated": {
        "packing": True,
        "max_length": 60,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
    },
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ["one token a byte", "merged with neighbours", "r1llama's own"])
def test_a_step_equals_the_naive_one(kind, batch, tmp_path):
    """Loss and, through the step, gradients; however the rows are dealt out."""
    tokenizer, weights = TOKENIZERS[kind](), {"<think>": 10.0, "</think>": 3.0, "<answer>": 0.5}
    prompts = [prompt if prompt.endswith(("=", ": ")) else "q: " for prompt in PROMPTS]  # no merge across the border
    data = rows(prompts, COMPLETIONS)
    changes = BATCHES[batch]
    trainer = make_trainer(tmp_path, tokenizer, dataset=data, tag_weights=weights, **changes)
    if changes.get("packing"):
        assert sorted(len(lengths) for lengths in trainer.train_dataset["seq_lengths"]) != [1, 1, 1, 1]
    torch.manual_seed(0)
    naive = LlamaForCausalLM(tiny_config(tokenizer))
    expected = naive_step(naive, tokenizer, weights, data)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    for (name, ours), theirs in zip(trainer.model.named_parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("changes", [{}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}])
def test_weight_one_is_plain_sft_to_the_bit(changes, tmp_path):
    tokenizer, changes = byte_tokenizer(), {"max_steps": 3, "eval_strategy": "no", **changes}
    plain = make_trainer(tmp_path, tokenizer, kind=SFTTrainer, **changes)
    ours = make_trainer(tmp_path, tokenizer, tag_weights=1, **changes)
    for trainer in (plain, ours):
        trainer.train()
    for (name, one), other in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    for one, other in zip(ours.state.log_history[:-1], plain.state.log_history[:-1], strict=True):
        assert {key: one[key] for key in other} == other
    assert ours.evaluate(rows())["eval_loss"] == pytest.approx(plain.evaluate(rows())["eval_loss"], rel=1e-6)


def test_tags_in_the_prompt_weigh_nothing(tmp_path):
    prompts, completions = ["<think>a</think><answer>"] * 4, ["1", "2", "3", "4"]
    losses = []
    for weight in (1, 1000):
        trainer = make_trainer(tmp_path, byte_tokenizer(), dataset=rows(prompts, completions), tag_weights=weight)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        assert "tag_emission" not in trainer.state.log_history[0]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("size", [1, 4])
def test_evaluation_is_the_weighted_mean_however_batched(size, tmp_path):
    tokenizer, weights = byte_tokenizer(), {"<think>": 10.0, "</answer>": 2.0}
    trainer = make_trainer(tmp_path, tokenizer, tag_weights=weights, per_device_eval_batch_size=size)
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(tokenizer))
    plain = naive_step(model, tokenizer, dict.fromkeys(weights, 1.0), rows(), rate=0.0)
    expected = naive_step(model, tokenizer, weights, rows())
    metrics = trainer.evaluate(rows())
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(plain), rel=1e-5)


def test_rows_without_labels_add_nothing(tmp_path):
    tokenizer = byte_tokenizer()
    ids = tokenizer("<think>1</think>")["input_ids"]
    data = Dataset.from_list([{"input_ids": ids, "labels": ids}, {"input_ids": ids, "labels": [-100] * len(ids)}])
    losses = []
    for dataset in (data, data.select([0])):
        changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": len(dataset)}
        trainer = make_trainer(tmp_path, tokenizer, dataset=dataset, tag_weights=5, **changes)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    trainer = make_trainer(tmp_path, tokenizer, dataset=data.select([1]), tag_weights=5, max_grad_norm=1.0)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_the_tag_emission_rate_is_that_of_the_likeliest_tokens(tmp_path):
    """Multi-token tags: each of its tokens must be the likeliest, in a model that has learned half of the rows."""
    tokenizer = merging_tokenizer()
    changes = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 40}
    learned = rows().select([0, 0, 0, 0])
    trainer = make_trainer(tmp_path, tokenizer, dataset=learned, tag_weights=10, **changes)
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert first["tag_emission"] < 0.5
    assert last["tag_emission"] == last["tag_emission/<think>"] == last["tag_emission/</answer>"] == 1
    assert {"entropy", "mean_token_accuracy"} <= last.keys()

    finder, model = TagSpans(tokenizer, TAGS), trainer.model.eval()
    hits = {tag: [] for tag in TAGS}
    for row in trainer._prepare_dataset(rows(), tokenizer, trainer.args, False, None, "eval"):
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        likeliest = model(ids[None]).logits[0].argmax(-1)
        spans = sorted(finder.find(ids.numpy()), key=lambda span: span[2])
        owner = {i: span for span in spans for i in range(*span[:2]) if i > 0 and labels[i] != -100}
        for span in set(owner.values()):
            hits[TAGS[span[2]]].append(all(likeliest[i - 1] == ids[i] for i in owner if owner[i] == span))
    metrics = trainer.evaluate(rows())
    everything = [hit for of_tag in hits.values() for hit in of_tag]
    assert 0 < sum(everything) < len(everything)
    assert metrics["eval_tag_emission"] == pytest.approx(sum(everything) / len(everything))
    for tag, of_tag in hits.items():
        assert metrics[f"eval_tag_emission/{tag}"] == pytest.approx(sum(of_tag) / len(of_tag)), tag


def test_losses_attached_to_the_model_keep_their_scale(tmp_path):
    """One step from the same weights: the balance and multi-token losses are the same numbers whatever the tags
    weigh, and with weight 1 the step is SFTTrainer's."""
    tokenizer, logs, models_ = byte_tokenizer(), {}, {}
    changes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_mtp_layers": 1}
    changes |= {"aux_loss_alpha": 0.1}
    for name, kind, weight in (
        ("plain", SFTTrainer, None),
        ("one", ThinkWeightedSFTTrainer, 1),
        ("ten", ThinkWeightedSFTTrainer, 10),
    ):
        torch.manual_seed(0)
        model = R1LlamaForCausalLM(R1LlamaConfig(**tiny_config(tokenizer).to_diff_dict() | changes))
        batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        trainer = make_trainer(tmp_path, tokenizer, model, kind=kind, tag_weights=weight, **batch)
        trainer.callback_handler.callbacks.insert(0, AuxiliaryLosses())
        trainer.train()
        logs[name], models_[name] = trainer.state.log_history[0], trainer.model
    assert logs["plain"]["loss/mtp"] == logs["one"]["loss/mtp"] == logs["ten"]["loss/mtp"]
    assert logs["plain"]["loss/balance"] == logs["one"]["loss/balance"] == logs["ten"]["loss/balance"]
    assert logs["plain"]["loss"] == logs["one"]["loss"] != logs["ten"]["loss"]
    for one, other in zip(models_["plain"].parameters(), models_["one"].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tag_weights": {"<think>": 0}}, "<think>: 0 must be a finite number above 0"),
        ({"tag_weights": {"<think>": float("nan")}}, "must be a finite number above 0"),
        ({"tag_weights": {}}, "must name at least one tag"),
        ({"tag_weights": 10, "loss_type": "dft"}, "leave `loss_type: nll`"),
    ],
)
def test_what_cannot_be_weighed_is_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, byte_tokenizer(), **changes)
