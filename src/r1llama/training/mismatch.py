"""GRPO that measures how far the engine that writes the rollouts is from the model that learns from them.

Both should give each token of a rollout the same probability. They do not when the engine rounds otherwise, routes to
other experts, has stale weights, or reads the config otherwise; the policy gradient is then that of another policy.
"""

import torch

from r1llama.training.routing_replay import RoutingReplayGRPOTrainer


def token_kl(log_ratio: torch.Tensor) -> torch.Tensor:
    """KL(engine || trainer) of each token, in nats, estimated at the tokens that the engine sampled.

    `r - 1 - log r`, r = p_trainer / p_engine: never negative, and its mean has no bias where the engine samples from
    its whole distribution (k3 of http://joschu.net/blog/kl-approx.html). float64: fp32 cancels below 1e-7.

    Args:
        log_ratio: log p_trainer - log p_engine, any shape.
    """
    log_ratio = log_ratio.double()
    return log_ratio.expm1() - log_ratio


class MismatchGRPOTrainer(RoutingReplayGRPOTrainer):
    """Logs `sampling/kl`, KL(engine || trainer) in nats a token, over the completion tokens of all processes, wherever
    the rollouts come with the engine's log-probabilities: from vLLM, or from a `rollout_func`.

    The trainer's are those of the weights that generated (TRL's `old_per_token_logps`), so that updates on the same
    rollouts add nothing. TRL computes them for the importance sampling correction; without it
    (`vllm_importance_sampling_correction: false`) and with one update for each rollout, they are those of the loss
    itself, and `sampling/sampling_logp_difference/{mean,max}`, which TRL then leaves out, are logged from here.

    Args:
        args, kwargs: As `RoutingReplayGRPOTrainer` takes them.
    """

    def __init__(self, *args, **kwargs):
        self.unmeasured = None  # the rollouts of the loss being computed, where nothing has measured them yet
        self.measured = {"train": [], "eval": []}  # since the last log: KL, difference, tokens, worst difference
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if "sampling_per_token_logps" in output and "old_per_token_logps" in output:
            self.measure(output, output["old_per_token_logps"])
        return output

    def _compute_loss(self, model, inputs):
        if "sampling_per_token_logps" in inputs and inputs.get("old_per_token_logps") is None:
            self.unmeasured = inputs
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        output = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self.unmeasured is not None:
            self.measure(self.unmeasured, output[0].detach())
            self.unmeasured = None
        return output

    def measure(self, rollouts: dict[str, torch.Tensor], logps: torch.Tensor) -> None:
        """Compare the trainer's log-probabilities of the tokens of `rollouts`, `(B, R)`, with the engine's."""
        log_ratio = logps - rollouts["sampling_per_token_logps"]
        mask = rollouts["completion_mask"] * rollouts.get("tool_mask", 1) * log_ratio.isfinite()
        log_ratio = torch.where(mask.bool(), log_ratio, 0.0)
        difference = log_ratio.double().abs()
        sums = token_kl(log_ratio).sum(), difference.sum(), mask.sum().double(), difference.max()
        self.measured["train" if self.model.training else "eval"].append(torch.stack(sums))

    def log(self, logs, *args, **kwargs):
        mode = "train" if self.model.training else "eval"
        if self.measured[mode]:
            sums = self.accelerator.gather(torch.stack(self.measured[mode])).view(-1, 4)
            self.measured[mode] = []
            kl, difference, tokens, _ = sums.sum(0).tolist()
            metrics = self._metrics[mode]
            metrics["sampling/kl"].append(kl / max(tokens, 1))
            if not (self.use_vllm and self.vllm_importance_sampling_correction):
                metrics["sampling/sampling_logp_difference/mean"].append(difference / max(tokens, 1))
                metrics["sampling/sampling_logp_difference/max"].append(sums[:, 3].max().item())
        super().log(logs, *args, **kwargs)
