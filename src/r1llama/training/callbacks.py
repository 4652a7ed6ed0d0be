"""What a stage does beside the trainer's own work.

- `MetricsFile`: one line of JSON per log
- `SampleCompletions`: greedy answers to a few fixed prompts, as JSON lines (SFT)
- `SampledFormat`: and the share of them in the reasoning format (distillation)
- `RouterBalancing`: moves the experts' selection bias before each optimizer step
- `AuxiliaryLosses`: weighs and logs the losses beside the language loss
"""

import json
import logging
import math
import time
from pathlib import Path

import torch
from accelerate.utils import reduce
from peft import PeftModel
from transformers import TrainerCallback
from trl.models import unwrap_model_for_generation

from r1llama.model import update_router_bias
from r1llama.rewards import format_reward
from r1llama.training.checkpoint import replace_text

log = logging.getLogger("r1llama")


class _JsonLines(TrainerCallback):
    """Appends JSON lines that carry a `step`; on a resumed run, lines beyond the checkpoint are dropped first."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if state.global_step and self._step(line) <= state.global_step]
        replace_text(self.path, "".join(line + "\n" for line in kept))

    @staticmethod
    def _step(line: str) -> float:
        try:
            return json.loads(line)["step"]
        except json.JSONDecodeError:  # the run ended while writing it
            return math.inf

    def append(self, rows: list[dict]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, default=float) + "\n" for row in rows)


class MetricsFile(_JsonLines):
    """Every log of the trainer as `{"step", "time" (Unix seconds), ...}`; NaN becomes null."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            numbers = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in logs.items()}
            self.append([{"step": state.global_step, "time": round(time.time(), 2), **numbers}])


class SampleCompletions(_JsonLines):
    """Every `every` steps, greedy completions of fixed prompts. Greedy draws no random number: sampling along the way
    leaves the training as it is. `count` is how many prompts a stage takes.

    Args:
        path: The JSON lines file.
        every: In optimizer steps.
        trainer: The `SFTTrainer`.
        prompts: Rendered prompts (chat template applied).
        max_new_tokens: Longest completion.
    """

    count = 4

    def __init__(self, path: Path, every: int, trainer, prompts: list[str], max_new_tokens: int):
        super().__init__(path)
        self.every, self.trainer, self.prompts, self.max_new_tokens = every, trainer, prompts, max_new_tokens

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every:
            return
        tokenizer, accelerator = self.trainer.processing_class, self.trainer.accelerator
        batch = tokenizer(
            self.prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        ).to(accelerator.device)
        training = model.training
        model.eval()
        # Every process takes part: under ZeRO-3 the weights are gathered together.
        with unwrap_model_for_generation(self.trainer.model_wrapped, accelerator) as unwrapped, torch.no_grad():
            tokens = unwrapped.generate(
                **batch,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
            )
        model.train(training)
        if state.is_world_process_zero:
            texts = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            rows = zip(self.prompts, texts, strict=True)
            self.append([{"step": state.global_step, "prompt": p, "completion": c} for p, c in rows])


class SampledFormat(SampleCompletions):
    """Logs `sampled_format` too: the share of the samples that are `<think>...</think><answer>...</answer>`, complete
    and nothing else."""

    count = 16

    def append(self, rows):
        super().append(rows)
        scores = format_reward([row["completion"] for row in rows], prompts=[row["prompt"] for row in rows])
        self.trainer._metrics["train"]["sampled_format"].append(sum(scores) / len(scores))


class _JoinsLogs(TrainerCallback):
    """What it measured joins the next log, averaged: `trainer.state.log_history`, and every callback behind this one.
    Put it first, as the stages do, to have it in progress bars and trackers too."""

    def __init__(self):
        self.measured: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.measured:
            means = {k: sum(m[k] for m in self.measured) / len(self.measured) for k in self.measured[0]}
            means = self.over_processes(means)
            logs.update(means)
            state.log_history[-1].update(means)
            self.measured = []

    def over_processes(self, means: dict) -> dict[str, float]:
        return means


class RouterBalancing(_JoinsLogs):
    """Loss-free balancing: before each optimizer step the selection bias moves against the load of the experts.

    It only measures, and leaves the bias as it is, where the moved bias would be lost: under PEFT, whose adapters do
    not save it. TRL sends a vLLM no buffers: our GRPO stage does (`r1llama.training.vllm_rollouts`), and with another
    trainer that has `use_vllm`, set the config's `router_bias_update_rate` to 0.

    Logs `router/...`, see `r1llama.model.update_router_bias`. Needs no trainer of ours:
    `Trainer(..., callbacks=[RouterBalancing()])`.
    """

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if metrics := update_router_bias(model, rate=0.0 if isinstance(model, PeftModel) else None):
            self.measured.append(metrics)


class AuxiliaryLosses(_JoinsLogs):
    """The losses that an r1llama model attaches inside (balance of the experts, router z-loss, multi-token
    prediction): each counts as its mean over the micro-batches of an optimizer step.

    Logs `loss/balance`, `loss/z`, `loss/mtp`, whichever the model's config switches on, without their coefficients.
    Needs no trainer of ours: `Trainer(..., callbacks=[AuxiliaryLosses()])`.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        backbone = _backbone(model)
        config = backbone.config
        if args.fp16 and (config.aux_loss_alpha or config.router_z_loss_coef or config.num_mtp_layers):
            raise ValueError(
                "fp16 scales the language loss up, and not the losses attached beside it (aux_loss_alpha, "
                "router_z_loss_coef, num_mtp_layers): they would vanish. Use bf16"
            )
        backbone.auxiliary_scale = 1 / args.gradient_accumulation_steps

    def on_substep_end(self, args, state, control, model=None, **kwargs):
        if losses := _backbone(model).auxiliary_losses:
            self.measured.append({f"loss/{name}": value for name, value in losses.items()})

    on_pre_optimizer_step = on_substep_end

    def over_processes(self, means):
        return {name: reduce(value, "mean").item() for name, value in means.items()}


def _backbone(model):
    return next(module for module in model.modules() if hasattr(module, "auxiliary_losses"))
