"""One GRPO step, rollout and update, with the prompt of a group computed once, against TRL's GRPOTrainer.

Both train the same random model with latent attention, on the same prompts and from the same seed: a whole step of the
real trainers, two groups of 8, all completions of full length, TRL's defaults otherwise (AdamW, activation
checkpointing). Before the timing, a step of each must give the same rollouts, log-probabilities, loss and gradients.

On a CPU, TRL's fused head also scores the tokens of the prompts, and ours has none to score; on a GPU neither does.
"""

import copy
import statistics
import tempfile
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.architecture.measure import Row, synchronize
from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.training.shared_prompts import SharedPromptGRPOTrainer

PROMPTS, GROUP = 2, 8
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
}
QUICK = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 3}
CUDA = {
    "vocab_size": 32768,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One token a word: w2, w3, ..."""
    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def variety(completions, **columns):
    """A reward that differs within a group: the share of words with an even number."""
    return [sum(word[-1] in "02468" for word in text.split()) / len(text.split()) for text in completions]


class Recorder(TrainerCallback):
    """Seconds of the step and of its rollout, and what the step computed."""

    def __init__(self, trainer, device):
        self.device = device
        self.log_probs = {}  # by the tokens of the sequence
        generate, score = trainer._generate_single_turn, trainer._get_per_token_logps_and_entropies

        def timed_generate(*args, **kwargs):
            start = self.now()
            self.completions, nothing = generate(*args, **kwargs)
            self.rollout = self.now() - start
            return self.completions, nothing

        def kept_score(model, input_ids, *args, **kwargs):
            outputs = score(model, input_ids, *args, **kwargs)
            self.log_probs |= dict(zip(map(tuple, input_ids.tolist()), outputs[0].detach(), strict=True))
            return outputs

        trainer._generate_single_turn, trainer._get_per_token_logps_and_entropies = timed_generate, kept_score

    def now(self):
        synchronize(self.device)
        return time.perf_counter()

    def on_step_begin(self, *args, **kwargs):
        self.start = self.now()

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients = torch.cat([p.grad.flatten().float() for p in model.parameters()])

    def on_step_end(self, *args, **kwargs):
        self.step = self.now() - self.start


def run_step(trainer_class, model, prompt_length: int, completion_length: int, device: str, folder: str) -> Recorder:
    """One step of a new trainer with a copy of the model."""
    model = copy.deepcopy(model)
    model.shares_prompts = False  # the model's own `generate` would share them for TRL too
    tokenizer = word_tokenizer(model.config.vocab_size)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(2, model.config.vocab_size, (PROMPTS, prompt_length), generator=generator).tolist()
    trainer = trainer_class(
        model=model,
        reward_funcs=variety,
        args=GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=completion_length,
            generation_kwargs={"min_new_tokens": completion_length},
            max_steps=1,
            learning_rate=1e-6,
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": " ".join(f"w{i}" for i in words)} for words in prompts]),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    recorder = Recorder(trainer, device)
    trainer.add_callback(recorder)
    trainer.train()
    recorder.loss = trainer.state.log_history[-1]["train_loss"]
    return recorder


def rows(quick: bool, device: str):
    prompt, completion, repeats = (128, 32, 1) if quick else (512, 128, 2)
    shape = SHAPE | (CUDA if device == "cuda" else QUICK if quick else {})
    config = R1LlamaConfig(**shape, max_position_embeddings=2048, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    torch.manual_seed(0)
    model = R1LlamaForCausalLM(config)
    classes = {"trl": GRPOTrainer, "shared": SharedPromptGRPOTrainer}
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: run_step(c, model, prompt, completion, device, folder) for name, c in classes.items()}
        error = compare(runs["shared"], runs["trl"], device)
        seconds = {name: [] for name in classes}
        for _ in range(repeats):
            for name, trainer_class in classes.items():
                run = run_step(trainer_class, model, prompt, completion, device, folder)
                seconds[name].append((run.step, run.rollout, run.step - run.rollout))
    medians = {name: [statistics.median(part) for part in zip(*runs, strict=True)] for name, runs in seconds.items()}
    size = (
        f"prompt {prompt}, completion {completion}, {PROMPTS} prompts, G = {GROUP}, "
        f"{model.num_parameters() / 1e6:.0f}M parameters"
    )
    for i, (part, bar) in enumerate((("rollout + update", 2), ("rollout", None), ("update", None))):
        ours, theirs = medians["shared"][i], medians["trl"][i]
        yield Row(
            claim=f"GRPO {part}, {size}",
            peer="TRL's GRPOTrainer, same model",
            value=theirs / ours,
            bar=bar,
            note=f"{theirs:.2f} s -> {ours:.2f} s",
            error=error,
        )


def compare(ours: Recorder, theirs: Recorder, device: str) -> float:
    """The largest difference of log-probabilities, loss and gradients; in bf16 the rollouts themselves may part."""
    if device == "cuda":
        return abs(ours.loss - theirs.loss)
    assert ours.completions == theirs.completions
    assert ours.log_probs.keys() == theirs.log_probs.keys()
    error = max(
        *((ours.log_probs[row] - theirs.log_probs[row]).abs().max().item() for row in ours.log_probs),
        (ours.gradients - theirs.gradients).abs().max().item(),
        abs(ours.loss - theirs.loss),
    )
    assert theirs.gradients.abs().max() > 1e-3
    assert error < 1e-5, error
    return error
