"""GRPO that trains on groups with something to compare (DAPO's dynamic sampling, arXiv:2503.14476, section 3.2)."""

import itertools

import numpy as np
import torch
from torch.nn import functional as F

from r1llama.training.mismatch import MismatchGRPOTrainer

# The per-token parts of a batch of rollouts, `(B, R)`, and what pads them.
PADDING = {
    "completion_mask": 0,
    "old_per_token_logps": 0.0,
    "ref_per_token_logps": 0.0,
    "sampling_per_token_logps": 0.0,
    "importance_sampling_ratio": 1.0,
}


class DynamicSamplingGRPOTrainer(MismatchGRPOTrainer):
    """Replaces flat groups, whose completions all got the same reward and so have no advantage: generates for as many
    other prompts, takes their groups with different rewards, and repeats up to `max_resamples` times. What is flat
    even then stays.

    The other prompts are drawn from the whole dataset by seed and step, so that a run can be repeated and resumed. The
    tables of completions show what is trained on; metrics of the rollouts count all that were generated. Logs
    `flat_groups` (share of the groups generated), `dynamic_sampling/resamples` (generations beyond the first) and
    `dynamic_sampling/flat` (share of the groups trained on).

    Args:
        args, kwargs: As `MismatchGRPOTrainer` takes them. The dataset has a length, each process generates whole
            groups, and advantages depend on nothing but their group.
        max_resamples: 0 for TRL's way.
    """

    def __init__(self, *args, max_resamples: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.max_resamples = max_resamples

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        mode, size = ("train", self.num_generations) if self.model.training else ("eval", self.num_generations_eval)
        unjudged = rewards.isnan().all(1)
        sums = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        highest = sums.masked_fill(unjudged, -torch.inf).view(-1, size).amax(1)
        lowest = sums.masked_fill(unjudged, torch.inf).view(-1, size).amin(1)
        self.is_flat = highest <= lowest  # exactly: TRL's frac_reward_zero_std sees a spread in rounding errors
        self._metrics[mode]["flat_groups"].append(self.is_flat.float().mean().item())
        return rewards

    def _generate_and_score_completions(self, inputs):
        if not self.max_resamples or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        output, flat, logs = self._generation(inputs)
        resamples = 0
        while resamples < self.max_resamples and (lacking := max(map(sum, flat))):
            resamples += 1
            other, other_flat, other_logs = self._generation(self._other_prompts(lacking, resamples))
            # Every process follows all choices, for the tables, and moves its own rollouts.
            for process, (groups, others) in enumerate(zip(flat, other_flat, strict=True)):
                holes = [group for group, is_flat in enumerate(groups) if is_flat]
                finds = [group for group, is_flat in enumerate(others) if not is_flat]
                pairs = list(zip(holes, finds, strict=False))
                for hole, find in pairs:
                    groups[hole] = False
                    logs[process][hole] = other_logs[process][find]
                if process == self.accelerator.process_index and pairs:
                    output = self._replaced(output, other, pairs)
        output["num_items_in_batch"] = self.accelerator.gather(output["completion_mask"].sum()).sum()
        for column in self._columns():
            for group in itertools.chain.from_iterable(logs):
                column.extend(group.get(id(column), [None] * self.num_generations))
        self._metrics["train"]["dynamic_sampling/resamples"].append(resamples)
        self._metrics["train"]["dynamic_sampling/flat"].append(np.mean(flat).item())
        return output

    def _generation(self, inputs):
        """Rollouts; for each process: which of its groups are flat, and each group's part of the log columns."""
        output = super()._generate_and_score_completions(inputs)
        size, total = self.num_generations, self.num_generations * len(self.is_flat)
        flat = self.is_flat.view(self.accelerator.num_processes, -1).tolist()
        columns = {id(column): list(column)[-total:] for column in self._columns()}
        logs = [
            {name: values[start : start + size] for name, values in columns.items()} for start in range(0, total, size)
        ]
        count = len(flat[0])
        return output, flat, [logs[start : start + count] for start in range(0, len(logs), count)]

    def _columns(self):
        logs = self._logs
        return [
            logs["prompt"],
            logs["completion"],
            logs["advantages"],
            *logs["rewards"].values(),
            *logs["extra"].values(),
        ]

    def _other_prompts(self, count: int, attempt: int) -> list[dict]:
        """`count` rows of the dataset for each process, each as often as a group is large; this process's."""
        rounds = self._step % self.args.gradient_accumulation_steps
        random = np.random.default_rng([self.args.seed, self.state.global_step, rounds, attempt])
        rows = np.resize(random.permutation(len(self.train_dataset)), (self.accelerator.num_processes, count))
        mine = rows[self.accelerator.process_index].tolist()
        return [self.train_dataset[row] for row in mine for _ in range(self.num_generations)]

    def _replaced(self, output: dict, other: dict, pairs: list[tuple[int, int]]) -> dict:
        """`output` with its group `hole` replaced by `other`'s group `find`, for each pair of them."""
        widths = {
            part: max(batch[f"{part}_ids"].shape[1] for batch in (output, other)) for part in ("prompt", "completion")
        }
        output, other = self._padded(output, **widths), self._padded(other, **widths)
        size = self.num_generations
        for name, value in output.items():
            if value is not None and value.ndim:
                for hole, find in pairs:
                    value[hole * size : (hole + 1) * size] = other[name][find * size : (find + 1) * size]
        return output

    def _padded(self, batch: dict, prompt: int, completion: int) -> dict:
        left = prompt - batch["prompt_ids"].shape[1]
        length = batch["completion_ids"].shape[1]
        right = completion - length
        pad = self._tokenizer.pad_token_id
        padded = {}
        for name, value in batch.items():
            if value is None or value.ndim < 2:
                padded[name] = value
            elif name in ("prompt_ids", "prompt_mask"):
                padded[name] = F.pad(value, (left, 0), value=pad if name == "prompt_ids" else 0)
            elif name == "completion_ids":
                padded[name] = F.pad(value, (0, right), value=pad)
            elif name == "routing":
                padded[name] = F.pad(value, (0, 0, 0, 0, left, right), value=-1)
            else:  # a ratio may be one for a whole completion
                padded[name] = F.pad(value.expand(-1, length), (0, right), value=PADDING[name])
        return padded
