"""What weighing the tags costs: `ThinkWeightedSFTTrainer` against TRL's `SFTTrainer`, same model, same traces.

A step is collation, count of the targets, forward, backward and metrics; without the optimizer, which is the same for
both. The steps alternate, and the figure is the median of the ratios of neighbours, so that a busy moment of the
machine falls on both; the CPU seconds of the process are a second witness. Memory is what the first three steps add
to a fresh process each, at their peak (on CUDA, to its allocator).

The third trainer is what one writes without ours: a `compute_loss_func` with the weights in a cross entropy over
logits.
"""

import copy
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from benchmarks.architecture.measure import Row, synchronize
from r1llama.data.tokenizer import TAGS, train_tokenizer
from r1llama.tasks.arithmetic import make_demonstrations, make_problems
from r1llama.training.think_weighted import ThinkWeightedSFTTrainer

SMALL = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES = {
    "2M": {**SMALL, "vocab_size": 6400},
    "7M, vocabulary 49152": {**SMALL, "vocab_size": 49152},
    # the model of recipes/spongebob-29m
    "29M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    | {"vocab_size": 6400},
}
ROWS, LENGTH = 8, 256
EQUAL_STEPS = 3


def traces(count: int) -> list[dict[str, str]]:
    """Long thoughts made of worked chains, then an answer; about `LENGTH` tokens."""
    problems = make_problems(count, "train", seed=0)
    rows, draw = make_demonstrations(problems, 1.0, seed=0), random.Random(0)
    bodies = [row["completion"].removeprefix("<think>").partition("</think>") for row in rows]
    return [
        {
            "prompt": row["prompt"],
            "completion": f"<think>{' '.join(draw.choice(bodies)[0] for _ in range(8))} {body}</think>{answer}",
        }
        for row, (body, _, answer) in zip(rows, bodies, strict=True)
    ]


def weighted_cross_entropy(tags: list[int], weight: float):
    """The loss as one writes it by hand, for tags of one token."""

    def loss(outputs, labels, num_items_in_batch=None):
        targets = labels[:, 1:].flatten()
        losses = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1).float(), targets, reduction="none")
        weights = torch.where(torch.isin(targets, torch.tensor(tags, device=targets.device)), weight, 1.0)
        weights = weights * (targets != -100)
        return (weights * losses).sum() / weights.sum()

    return loss


def make_trainer(kind: str, size: str, device: str, folder: str):
    rows = traces(4 * ROWS)
    tokenizer = train_tokenizer([row["prompt"] + row["completion"] for row in rows], 6400)
    torch.manual_seed(0)
    config = LlamaConfig(tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, **SIZES[size])
    arguments = SFTConfig(
        folder,
        per_device_train_batch_size=ROWS,
        max_length=LENGTH,
        learning_rate=1e-3,
        max_steps=EQUAL_STEPS,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        bf16=device != "cpu",
        gradient_checkpointing=False,
    )
    keywords = {}
    if kind == "logits":
        tags = tokenizer.convert_tokens_to_ids(list(TAGS))
        keywords["compute_loss_func"] = weighted_cross_entropy(tags, 10.0)
    if kind.startswith("weight"):
        keywords["tag_weights"] = float(kind.partition(" ")[2])
    trainer_class = ThinkWeightedSFTTrainer if kind.startswith("weight") else SFTTrainer
    return trainer_class(
        LlamaForCausalLM(config),
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        **keywords,
    )


def step(trainer) -> torch.Tensor:
    """One micro-batch, as `Trainer.train` does it; the loss."""
    examples = [trainer.train_dataset[i] for i in range(ROWS)]
    trainer.current_gradient_accumulation_steps = 1
    device = trainer.args.device
    batch = {name: value.to(device) for name, value in trainer.data_collator(examples).items()}
    count = trainer._get_num_items_in_batch([batch], device)
    loss = trainer.training_step(trainer.model, batch, count)
    trainer.model.zero_grad()
    return loss


def seconds(trainers: dict, repeats: int, device: str) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and CPU seconds of each step, the trainers in turn, after two steps to warm up."""
    wall, cpu = ({name: [] for name in trainers} for _ in range(2))
    for repeat in range(-2, repeats):
        for name, trainer in trainers.items():
            synchronize(device)
            starts = time.perf_counter(), time.process_time()
            step(trainer)
            synchronize(device)
            if repeat >= 0:
                wall[name].append(time.perf_counter() - starts[0])
                cpu[name].append(time.process_time() - starts[1])
    return wall, cpu


def ratio(times: dict[str, list[float]], name: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))


def memory(kind: str, size: str, device: str) -> int:
    """Bytes that steps add to a fresh process."""
    command = [sys.executable, "-m", "benchmarks.training.distill", kind, size, device, str(torch.get_num_threads())]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def memory_of_this_process(kind: str, size: str, device: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(kind, size, device, folder)
        if device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak of importing and tokenising (Linux)
        before = resident("VmRSS") if device == "cpu" else torch.cuda.memory_allocated()
        for _ in range(3):
            step(trainer)
    print((resident("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()) - before)


def resident(line: str) -> int:
    return 1024 * int(re.search(rf"{line}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def rows(quick: bool, device: str):
    with tempfile.TemporaryDirectory() as folder:
        small = "2M"
        plain, one = (make_trainer(kind, small, device, folder) for kind in ("plain", "weight 1"))
        start = copy.deepcopy(plain.model.state_dict())
        one.model.load_state_dict(start)
        for trainer in (plain, one):
            trainer.train()
        losses = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (plain, one)]
        yield Row(
            f"loss of {EQUAL_STEPS} steps with weight 1, {small}",
            "SFTTrainer",
            max(abs(a - b) for a, b in zip(*losses, strict=True)),
            bar=1e-7,
            at_most=True,
            unit="nats apart",
            error=max(
                (a - b).abs().max().item()
                for a, b in zip(plain.model.parameters(), one.model.parameters(), strict=True)
            ),
        )
        for size in [small] if quick else SIZES:
            kinds = {"plain": "plain", "ours": "weight 10", "by hand": "logits"}
            trainers = {name: make_trainer(kind, size, device, folder) for name, kind in kinds.items()}
            repeats = 2 if quick else {"2M": 40, "29M": 8}.get(size, 10)
            difference = (step(trainers["ours"]) - step(trainers["by hand"])).abs().item()
            wall, cpu = seconds(trainers, repeats, device)
            medians = {name: statistics.median(times) for name, times in wall.items()}
            tokens = sum(len(row["input_ids"]) for row in trainers["plain"].train_dataset.select(range(ROWS)))
            yield Row(
                f"time of a step, {size}, {ROWS} traces, {tokens} tokens",
                "SFTTrainer",
                ratio(wall, "ours", "plain"),
                bar=1.03,
                at_most=True,
                note=f"{1000 * medians['ours']:.0f} against {1000 * medians['plain']:.0f} ms; CPU seconds "
                f"{ratio(cpu, 'ours', 'plain'):.3f}",
            )
            yield Row(
                f"time of a step, {size}",
                "weights in a compute_loss_func over logits",
                ratio(wall, "ours", "by hand"),
                note=f"{1000 * medians['ours']:.0f} against {1000 * medians['by hand']:.0f} ms; CPU seconds "
                f"{ratio(cpu, 'ours', 'by hand'):.3f}",
                error=difference,
            )
            peaks = {name: memory(kind, size, device) for name, kind in kinds.items()}
            megabytes = {name: value / 2**20 for name, value in peaks.items()}
            for name, peer in (("plain", "SFTTrainer"), ("by hand", "weights in a compute_loss_func over logits")):
                yield Row(
                    f"memory of the steps, {size}",
                    peer,
                    peaks["ours"] / peaks[name],
                    bar=1.02 if name == "plain" else None,
                    at_most=True,
                    note=f"{megabytes['ours']:.0f} against {megabytes[name]:.0f} MiB",
                )


if __name__ == "__main__":
    memory_of_this_process(*sys.argv[1:])
