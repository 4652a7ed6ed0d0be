"""SFT as the stage runs it (packed documents as rows) beside TRL's SFTTrainer, on the same rows and model.

Peers: without packing, as most recipes run it, each batch padded to its longest row; and TRL's own packing, which
lays the whole batch in one row. The rows are prompts and completions of random words, with lengths as chats have them:
log-normal, median 160 tokens, cut at 512. Tokens per second count tokens that are no padding.
"""

import random
import tempfile

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig
from trl import SFTConfig, SFTTrainer

from benchmarks.architecture.measure import Row
from r1llama.data.tokenizer import train_tokenizer
from r1llama.training.collator import pack_in_rows
from r1llama.training.sft import SFTStageTrainer

from .measure import trainings

LENGTH = 512


def documents(count: int, seed: int = 0) -> Dataset:
    """Random words; one token a byte."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        size = min(int(draw.lognormvariate(5.08, 0.8)), LENGTH - 2)
        text = "".join(draw.choice("abcdefghij ") for _ in range(max(size, 8)))
        cut = max(1, len(text) // 4)
        rows.append({"prompt": text[:cut], "completion": text[cut:]})
    return Dataset.from_list(rows)


def rows(quick: bool, device: str):
    tokenizer = train_tokenizer([])
    tokenizer.padding_side = "right"
    hidden, layers = (1024, 16) if device == "cuda" else (128, 2) if quick else (256, 4)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=LENGTH,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    data = documents(2048 if device == "cuda" else 48 if quick else 96)
    folder = tempfile.mkdtemp()

    def trainer(rows_per_batch, kind=SFTTrainer, dataset=data, **keys):
        torch.manual_seed(0)
        args = SFTConfig(
            output_dir=folder,
            max_length=LENGTH,
            per_device_train_batch_size=rows_per_batch,
            num_train_epochs=1,
            learning_rate=1e-4,
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            gradient_checkpointing=False,
            logging_steps=1000,
            save_strategy="no",
            include_num_input_tokens_seen="non_padding",
            disable_tqdm=True,
            **keys,
        )
        model = AutoModelForCausalLM.from_config(config)
        made = kind(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
        if kind is SFTStageTrainer:
            pack_in_rows(made)
        return made

    # As many tokens a batch: 12 rows of these lengths are about 5 full ones
    batch = 96 if device == "cuda" else 12
    makers = {
        "ours": lambda **keys: trainer(batch * 5 // 12, SFTStageTrainer, packing=True, **keys),
        "TRL": lambda **keys: trainer(batch, **keys),
        "TRL, packing": lambda **keys: trainer(batch * 5 // 12, packing=True, **keys),
    }
    few = data.select(range(12))
    losses = {name: loss(make(dataset=few)) for name, make in makers.items()}
    errors = {name: abs(found - losses["ours"]) for name, found in losses.items()}
    assert max(errors.values()) < (1e-3 if device == "cuda" else 1e-6), losses
    packed = makers["ours"]()
    tokens = sum(sum(row["seq_lengths"]) for row in packed.train_dataset)
    lengths = [len(row["input_ids"]) for row in makers["TRL"]().train_dataset]
    assert tokens == sum(lengths)  # the same tokens, once each

    runs = trainings(makers, 1 if quick else 3, device)
    speed = {name: run.tokens_per_second for name, run in runs.items()}
    for peer in ("TRL", "TRL, packing"):
        name = "without packing" if peer == "TRL" else "with its packing"
        yield Row(
            f"SFT, {len(data)} rows of median {sorted(lengths)[len(lengths) // 2]} tokens, {hidden} x {layers}",
            f"TRL {name}",
            speed["ours"] / speed[peer],
            bar=1.0,
            note=f"{speed['ours']:.0f} | {speed[peer]:.0f} tokens/s",
            error=errors[peer],
        )
        yield Row(
            "peak memory of the same",
            f"TRL {name}",
            runs["ours"].gib / runs[peer].gib,
            note=f"{runs['ours'].gib:.2f} | {runs[peer].gib:.2f} GiB added by training",
        )


def loss(trainer) -> float:
    """Of all rows of the trainer's dataset in one batch, before any step."""
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, batch).item()
