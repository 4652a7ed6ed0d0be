"""How fast a run is and what it needs: tokens per second, share of the hardware's peak, memory; and perplexity.

Throughput      callback: `tokens_per_second`, `mfu`, `memory/peak_gib` in every log
training_flops  the arithmetic of one token
peak_flops      what the hardware could do
Perplexity      for trainers: the validation loss as the mean over tokens, and its exponential
"""

import logging
import math
import re
import resource
import sys
import time
from functools import cache

import torch
from transformers import PreTrainedConfig, TrainerCallback

from r1llama.model.sizes import sizes

log = logging.getLogger("r1llama")

# Dense bf16 FLOP/s of tensor cores, from the makers' data sheets
PEAK_FLOPS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
}


def training_flops(config: PreTrainedConfig, length: int) -> float:
    """Floating point operations of training on one token: 6 N + 6 T H (d_qk + d_v) for each softmax layer, as in
    PaLM (arXiv:2204.02311, appendix B, where d_qk = d_v). N are the weights that a token is multiplied with: the
    active experts and the head, and no embedding table that is only read. Scores count over the whole length, causal
    or packed or not; a linear layer counts 12 H d_phi d_v for its state. Activations that are computed twice to save
    memory count once, and the layers of multi-token prediction are left out.

    Args:
        config: Of a causal language model.
        length: T, the tokens of a row.
    """
    found = sizes(config)
    weights = found.active - (0 if config.tie_word_embeddings else found.embedding // 2)
    heads, dim = config.num_attention_heads, getattr(config, "head_dim", None)
    dim = dim or config.hidden_size // heads
    key, value = dim, dim
    if getattr(config, "kv_lora_rank", None) is not None:
        key, value = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    features = 2 * dim if getattr(config, "linear_feature_map", None) == "hedgehog" else dim
    layer_types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    linear = layer_types.count("linear_attention")
    softmax = len(layer_types) - linear
    return 6.0 * weights + heads * (6.0 * length * (key + value) * softmax + 12.0 * features * dim * linear)


def known_peak(name: str) -> float | None:
    """FLOP/s in bf16 of a GPU of this name; None if it is not in `PEAK_FLOPS`."""
    return next((peak for known, peak in PEAK_FLOPS.items() if re.search(rf"\b{known}\b", name)), None)


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that one device could do: from the data sheet where its name and the dtype are known, else the best of
    five matrix products, which is somewhat less."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        if peak := known_peak(name):
            log.info("MFU: against %.0f TFLOP/s, from the data sheet of %s", peak / 1e12, name)
            return peak
    size = 8192 if device.type == "cuda" else 512
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(6):  # the first one warms up
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    peak = 2 * size**3 / min(seconds[1:])
    log.info("MFU: against %.3g TFLOP/s, measured by a matrix product in %s on %s", peak / 1e12, dtype, device)
    return peak


def peak_memory(device: torch.device) -> float:
    """GiB: the most that tensors took on the GPU, or the process in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Throughput(TrainerCallback):
    """Logs of all processes together, over the optimizer steps since the last log, without the time for saving and
    evaluating:

    - `tokens_per_second`: tokens that are no padding;
    - `mfu`: model FLOPs utilisation, `training_flops` times that over `peak_flops`. Not under PEFT, where most weights
      need no gradient;
    - `memory/peak_gib`: of the main process, see `peak_memory`;
    - `num_tokens` is set right: TRL counts one row of a packed batch, and from 0 when resumed.

    Args:
        trainer: An `SFTTrainer`; `add_to` puts the callback before those that show or send the logs.
        length: Tokens of a row, for the arithmetic.
    """

    def __init__(self, trainer, length: int):
        if trainer.args.include_num_input_tokens_seen == "no":
            trainer.args.include_num_input_tokens_seen = "non_padding"
        self.flops = None
        if not hasattr(trainer.model, "peft_config"):
            try:
                self.flops = training_flops(trainer.model.config, length)
            except (AttributeError, ValueError) as error:
                log.info("no MFU: the arithmetic of this model is not known (%s)", error)

    @classmethod
    def add_to(cls, trainer, length: int) -> None:
        trainer.callback_handler.callbacks.insert(0, cls(trainer, length))

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.dtype
        self.peak = args.world_size * peak_flops(args.device, dtype) if self.flops else None
        self.tokens, self.seconds, self.mark = state.num_input_tokens_seen, 0.0, time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self.mark
        self.mark = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        measured = {name: state.num_input_tokens_seen for name in ("num_tokens", "eval_num_tokens") if name in logs}
        if "loss" in logs and self.seconds:
            rate = (state.num_input_tokens_seen - self.tokens) / self.seconds
            measured |= {"tokens_per_second": rate, "memory/peak_gib": peak_memory(args.device)}
            if self.flops:
                measured["mfu"] = rate * self.flops / self.peak
            self.tokens, self.seconds = state.num_input_tokens_seen, 0.0
        logs.update(measured)
        state.log_history[-1].update(measured)
        self.mark = time.perf_counter()

    def on_save(self, args, state, control, **kwargs):
        self.mark = time.perf_counter()

    on_evaluate = on_save


class Perplexity:
    """For an SFTTrainer, in front of it: `eval_loss` is the mean over all validation tokens and not over batches, and
    `eval_perplexity` its exponential, if the loss is the plain one.

    On several processes, the rows that fill up the last batch are counted again.
    """

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, *rest = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        count = (inputs["labels"][:, 1:] != -100).sum()
        self.scored += torch.stack([loss.double() * count, count.double()]).cpu()
        return loss, *rest

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        self.scored = torch.zeros(2, dtype=torch.float64)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, count = self.accelerator.reduce(self.scored.to(self.args.device)).tolist()
        loss = total / count if count else math.nan
        output.metrics[f"{metric_key_prefix}_loss"] = loss
        if self.args.loss_type == "nll" and not self.args.label_smoothing_factor:
            output.metrics[f"{metric_key_prefix}_perplexity"] = math.exp(loss) if loss < 700 else math.inf
        return output
