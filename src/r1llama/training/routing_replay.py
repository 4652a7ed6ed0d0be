"""GRPO whose updates use the experts that the rollouts used (R3, arXiv:2510.11370)."""

import logging

import numpy as np
import torch
from torch.nn import functional as F

from r1llama.model import R1LlamaForCausalLM, record_routing, replay_routing
from r1llama.training.shared_prompts import SharedPromptGRPOTrainer
from r1llama.training.vllm_rollouts import in_place_of_trls

log = logging.getLogger("r1llama")


class RoutingReplayGRPOTrainer(SharedPromptGRPOTrainer):
    """Records which experts each token of a rollout used, and replays it wherever the policy's log-probabilities are
    computed: for the old policy and for every update. See `r1llama.model.routing_replay`.

    The ids travel with the rollouts as `routing`, `(B, P + R, layers with experts, K)`; -1, where no rollout read a
    token, leaves the choice to the router. A reference model of its own chooses for itself; with adapters the
    reference is the same model and follows.

    Args:
        args, kwargs: As `SharedPromptGRPOTrainer` takes them.
        replay_routing: False for routers that choose anew. For models without experts, and for rollouts that neither
            transformers' `generate` nor vLLM makes in one turn, it is off, and the log says why.
    """

    def __init__(self, *args, replay_routing: bool = True, **kwargs):
        with in_place_of_trls(returns_experts=replay_routing):
            super().__init__(*args, **kwargs)
        reason = self.why_not_replayed()
        if not getattr(self.base_model.config, "num_experts", None):
            replay_routing = False
        if replay_routing and reason:
            log.info("`replay_routing`: %s; routers choose anew in each update", reason)
        self.replays_routing = replay_routing and reason is None
        self.routing = None

    def why_not_replayed(self) -> str | None:
        """What keeps a model with experts from replaying; None if nothing does."""
        if not isinstance(self.base_model, R1LlamaForCausalLM):
            return f"{type(self.base_model).__name__} is no r1llama model"
        if self.use_transformers_continuous_batching:
            return "continuous batching of transformers does not tell its experts"
        if self.tools or self.rollout_func is not None:
            return "rollouts with tools, or by a `rollout_func`, take several turns"
        return self.vllm_generation.why_no_experts() if self.use_vllm else None

    def _generate(self, prompts):
        if not self.replays_routing:
            return super()._generate(prompts)
        # As TRL pads the rollouts, whose last token no forward has read
        if self.use_vllm:
            generated = super()._generate(prompts)
            prompt_length, completion_length = self.padded_lengths(generated)
            layers, first = self.vllm_generation.routed_experts, self.base_model.config.first_k_dense_replace
            read = [torch.from_numpy(ids[:, first:].astype(np.int16)) for ids in layers]
            ids = read[0].new_full((len(read), prompt_length + completion_length, *read[0].shape[1:]), -1)
            for row, prompt, one in zip(ids, generated[0], read, strict=True):
                row[prompt_length - len(prompt) :][: len(one)] = one
            self.routing = ids.to(self.accelerator.device)
            return generated
        with record_routing(self.base_model) as record:
            generated = super()._generate(prompts)
        ids = record.ids().permute(1, 2, 0, 3).to(torch.int16)
        length = sum(self.padded_lengths(generated))
        self.routing = F.pad(ids, (0, 0, 0, 0, 0, max(length - ids.shape[1], 0)), value=-1)[:, :length]
        return generated

    def padded_lengths(self, generated) -> list[int]:
        """P and R."""
        multiple = self.pad_to_multiple_of or 1
        return [-(-max(map(len, part)) // multiple) * multiple for part in generated[:2]]

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.routing is not None:
            output["routing"], self.routing = self.routing, None
        return output

    def _compute_loss(self, model, inputs):
        self.routing = inputs.get("routing")
        loss = super()._compute_loss(model, inputs)
        self.routing = None
        return loss

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        if self.routing is None or model is self.ref_model:
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        rows = iter(self.routing)

        def replaying(input_ids, **inputs):
            routing = torch.stack([next(rows) for _ in input_ids])
            with replay_routing(model, routing.permute(2, 0, 1, 3)):
                return model(input_ids=input_ids, **inputs)

        return super()._get_per_token_logps_and_entropies(replaying, *args, **kwargs)
