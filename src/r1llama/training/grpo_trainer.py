"""The trainer of the GRPO stage: TRL's, with what a recipe adds to it."""

import logging
import os

import numpy as np
from safetensors.torch import load_model, save_model

from r1llama.training.checkpoint import checkpoints
from r1llama.training.dynamic_sampling import DynamicSamplingGRPOTrainer
from r1llama.training.vllm_client import ServerLost

log = logging.getLogger("r1llama")

REFERENCE = "reference.safetensors"


class R1GRPOTrainer(DynamicSamplingGRPOTrainer):
    """Adds rewards whose weights follow a schedule, the columns `tokens` and `truncated` of the tables of completions,
    and checkpoints that hold a renewed reference (`sync_ref_model`), from which TRL's would resume with the first.

    Args:
        args, kwargs: As `DynamicSamplingGRPOTrainer` takes them.
        reward_schedules: Index of a reward -> its weight as points (optimizer step, weight), steps rising: linear
            between them, constant before the first and after the last. Rewards are logged before their weights.
    """

    def __init__(self, *args, reward_schedules: dict[int, list[tuple[float, float]]] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.reward_schedules = reward_schedules or {}
        self.renews_reference = self.args.sync_ref_model
        if self.renews_reference and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            log.warning("`sync_ref_model` under ZeRO or FSDP: a resumed run starts again from the first reference")
            self.renews_reference = False

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        except ServerLost as error:
            step, last = self.state.global_step, self.state.max_steps
            saved = next((at for at, _ in checkpoints(self.args.output_dir)), 0)
            if step > saved:  # its rollouts were the first thing that the next step asked for
                self._save_checkpoint(self.model_wrapped, trial=None)
            done = f"The last finished step was {step} of {last}, and checkpoint-{step} holds it"
            raise ServerLost(
                f"{error}. {done if step else 'No step was finished'}: once the server runs again, the same command "
                "continues",
                of_all=True,
            ) from error

    def _generate_and_score_completions(self, inputs):
        for index, points in self.reward_schedules.items():
            steps, weights = zip(*points, strict=True)
            self.reward_weights[index] = np.interp(self.state.global_step, steps, weights)
        return super()._generate_and_score_completions(inputs)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        self._log_completion_extra("tokens", [len(ids) for ids in completion_ids_list])
        self._log_completion_extra("truncated", [ids[-1] not in ends for ids in completion_ids_list])
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.renews_reference and self.args.should_save:
            folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            save_model(self.accelerator.unwrap_model(self.ref_model), os.path.join(folder, REFERENCE))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.renews_reference and checkpoint is not None:
            path = os.path.join(checkpoint, REFERENCE)
            if os.path.exists(path):
                load_model(self.accelerator.unwrap_model(self.ref_model), path, device=str(self.accelerator.device))
