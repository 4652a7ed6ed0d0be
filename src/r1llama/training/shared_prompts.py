"""GRPO that computes each prompt once for its whole group, and gets the same numbers as TRL's own."""

import logging
import math

import torch
from peft import PeftModel
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from r1llama.model import R1LlamaForCausalLM
from r1llama.model.shared_prompts import distinct_rows

log = logging.getLogger("r1llama")


class SharedPromptGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer`, where the completions of a group share their prompt: `generate` prefills it once and
    branches the cache; the log-probabilities of policy, old policy and reference run over it once for each
    micro-batch, whose completions therefore come from as few groups as possible. vLLM's rollouts share prompts
    without this; the rest is the same.

    Samples, losses and gradients are those of TRL's trainer up to the order of summation, with one exception: dropout,
    where it is on, draws one mask for a prompt and not one for each completion. What cannot share prompts runs as in
    TRL, and the log says why.

    Args:
        args, kwargs: As `GRPOTrainer` takes them.
        share_prompts: False for TRL's way.
    """

    def __init__(self, *args, share_prompts: bool = True, **kwargs):
        super().__init__(*args, **kwargs)
        reason = self.why_not_shared()
        if share_prompts and reason:
            log.info("`share_prompts`: %s; each completion computes its prompt for itself, as in TRL", reason)
        self.share_prompts = share_prompts and reason is None
        self.base_model.shares_prompts = self.share_prompts  # in `generate`

    @property
    def base_model(self):
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if isinstance(model, PeftModel) else model

    def why_not_shared(self) -> str | None:
        """What keeps the completions from sharing prompts; None if nothing does."""
        adapter = getattr(self.accelerator.unwrap_model(self.model), "active_peft_config", None)
        if adapter is not None and adapter.is_prompt_learning:
            return f"{adapter.peft_type.value} adapters put tokens of their own before each prompt"
        if not isinstance(self.base_model, R1LlamaForCausalLM):
            return f"{type(self.base_model).__name__} cannot continue from the prompt of another row"
        if self.aux_loss_enabled:
            return "`router_aux_loss_coef` asks for the router logits of each row"
        return None

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        prompt_length = input_ids.shape[1] - logits_to_keep

        def completions(labels, **inputs):
            return model(labels=labels[:, prompt_length - 1 :], prompt_length=prompt_length, **inputs)

        # The same for all processes, whatever their prompts: under ZeRO-3 they must gather the weights in step
        is_alone = (batch_size or len(input_ids)) == 1
        return super()._get_per_token_logps_and_entropies(
            completions if self.share_prompts and not is_alone else model,
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size,
            **kwargs,
        )

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        # TRL shuffles the rollouts over the micro-batches. What these losses take from one depends on its company.
        depends_on_micro_batch = (
            self.loss_type == "bnpo" or self._entropy_bonus_enabled or self.top_entropy_quantile < 1.0
        )
        if self._buffered_inputs is before or not self.share_prompts or depends_on_micro_batch:
            return inputs
        steps = self.args.steps_per_generation
        # Groups come together within an optimizer step alone, which so trains on what TRL's shuffle dealt it.
        window = math.gcd(steps, self.args.gradient_accumulation_steps)
        self._buffered_inputs = [
            batch
            for start in range(0, steps, window)
            for batch in bring_groups_together(self._buffered_inputs[start : start + window])
        ]
        return self._buffered_inputs[self._step % steps]


def bring_groups_together(batches: list[dict]) -> list[dict]:
    """The rows of several micro-batches, dealt anew so that those with the same prompt follow each other."""
    _, prompt_of = distinct_rows(
        *(torch.cat([batch[name] for batch in batches]) for name in ("prompt_ids", "prompt_mask"))
    )
    order = prompt_of.argsort(stable=True)
    rows = {
        name: torch.cat([batch[name] for batch in batches])[order] if value is not None and value.ndim else value
        for name, value in batches[0].items()
    }
    return split_tensor_dict(rows, len(batches))
