"""Says what goes wrong in a GRPO run while it goes wrong, and why.

| alarm | raised when, over the newest logs | quiet, since |
|---|---|---|
| stuck | a reward has the same value for all completions | above 0, it may be solved; a punishment at 0 is fine |
| collapse | the first reward, or every one, fell below half of its best | a noisy fall is within its error |
| length | completions grew by half, and the first reward did not | reasoning that pays may take its length |
| entropy | it fell below a tenth, most groups are flat, the task is not solved | what is solved may be certain |
| flat | nearly all groups have equal rewards, the task is not solved | groups differ while there is more to learn |
| kl | the KL to the reference is above 1 nat a token, and ten times its least | it grows slowly |
| truncation | most completions reach `max_completion_length` | they end |
| mismatch | `sampling/kl` is above 1.5e-3 nats a token, in fp32 above 1e-5 | rounding costs less |

Everything is read from the logs that a checkpoint keeps, so a resumed run goes on as it would have. The first of
`reward_funcs` is taken for the one that tells right from wrong; at 0.9 it is solved. A mean has the standard error of
its groups: a change is sure beyond four of them, and none within one.

The bound of mismatch is what bf16 explains. Engine and trainer differ by 6.4e-4 nats a token with a dense model, by
1.5e-3 with experts whose routing flips, and by 7.5e-4 where it is replayed (arXiv:2510.11370); a wrong YaRN factor
alone made it 3e-2 (PrimeIntellect-ai/prime-rl#2802). In fp32 nothing is left to explain: both ends agree to 1e-9.
"""

import logging
import math
from dataclasses import dataclass
from statistics import fmean

import torch
from transformers import TrainerCallback

from r1llama.rewards.diagnostics import diagnose
from r1llama.rewards.length import RepetitionPenalty

log = logging.getLogger("r1llama")

PATIENCE = 5  # logs
SURE = 4  # standard errors
SOLVED = 0.9
LOOP = 12  # characters that come again

TOLERATED_KL, TOLERATED_KL_FP32 = 1.5e-3, 1e-5  # nats a token

LENGTH, TRUNCATED = "completions/mean_length", "completions/clipped_ratio"


@dataclass
class Level:
    """A metric over a few logs in a row."""

    mean: float  # nan: not logged
    error: float  # standard error
    steps: str

    def __str__(self):
        return f"{self.mean:.3g} ({self.steps})"

    def rise(self, after: "Level") -> float:
        """In standard errors."""
        return (after.mean - self.mean) / max(math.hypot(self.error, after.error), 1e-9)


class History:
    """The logs of a run, the newest `PATIENCE` of them against those before.

    Args:
        logs: `trainer.state.log_history`.
        groups: Groups whose rewards one log averages over.
        first_reward: The name, in the logs, of the reward that tells right from wrong.
        is_fp32: Whether the model computes in fp32.
    """

    def __init__(self, logs: list[dict], groups: int, first_reward: str, is_fp32: bool = False):
        logs = [entry for entry in logs if "reward" in entry]
        self.groups = groups
        self.recent, before = logs[-PATIENCE:], logs[:-PATIENCE]
        ends = [*range(1, PATIENCE), *range(PATIENCE, len(before) + 1, PATIENCE)]  # at the start, shorter ones
        self.earlier = [before[max(0, end - PATIENCE) : end] for end in ends if end <= len(before)]
        self.rewards = (
            [key for key in logs[-1] if key.startswith("rewards/") and key.endswith("/mean")] if logs else []
        )
        self.right = f"rewards/{first_reward}/mean"
        self.tolerated_kl = TOLERATED_KL_FP32 if is_fp32 else TOLERATED_KL

    def level(self, logs: list[dict], key: str) -> Level:
        values = [entry[key] for entry in logs if entry.get(key) is not None]
        spread = [entry.get(key.removesuffix("mean") + "std") or 0.0 for entry in logs]
        first, last = logs[0]["step"], logs[-1]["step"]
        return Level(
            fmean(values) if values else math.nan,
            math.sqrt(fmean(s**2 for s in spread) / (self.groups * max(len(values), 1))),
            f"step {first}" if first == last else f"steps {first}-{last}",
        )

    def now(self, key: str) -> Level:
        return self.level(self.recent, key)

    def best(self, key: str) -> Level:
        return max(
            (self.level(w, key) for w in self.earlier), key=lambda one: -math.inf if one.mean != one.mean else one.mean
        )

    @property
    def is_solved(self) -> bool:
        return self.now(self.right).mean >= SOLVED

    @property
    def flat(self) -> float:
        return self.now("flat_groups").mean

    def is_stuck(self, key: str) -> bool:
        """A punishment that nothing earns is as it should be."""
        means = [entry.get(key) for entry in self.recent]
        if _punishes(key) and not any(means):
            return False
        if any(mean is None for mean in means):
            return all(mean is None for mean in means)
        spread = [entry.get(key.removesuffix("mean") + "std") for entry in self.recent]
        return max(means) - min(means) < 1e-6 and all(value is not None and value < 1e-6 for value in spread)


def collapse(history: History) -> str | None:
    seen = {key: (history.best(key), history.now(key)) for key in history.rewards if history.earlier}
    paid = {key: levels for key, levels in seen.items() if levels[0].mean > 0}
    fallen = {key: levels for key, levels in paid.items() if levels[1].mean < levels[0].mean / 2}
    sure = [key for key, (best, now) in fallen.items() if now.rise(best) > SURE]
    if not sure or not (history.right in sure or len(fallen) == len(paid)):
        return None
    key = history.right if history.right in sure else sure[0]
    return f"{_name(key)} fell from {seen[key][0]} to {seen[key][1]}"


def length(history: History) -> str | None:
    if len(history.earlier) < PATIENCE:
        return None
    short = min(history.earlier[PATIENCE - 1 :], key=lambda logs: history.level(logs, LENGTH).mean)
    before, now = history.level(short, LENGTH), history.now(LENGTH)
    levels = {key: (history.level(short, key), history.now(key)) for key in history.rewards}
    if not now.mean > 1.5 * before.mean or levels[history.right][0].rise(levels[history.right][1]) >= 1:
        return None
    changes = [
        f"{_name(key)} went from {one.mean:.2g} to {other.mean:.2g}"
        for key, (one, other) in levels.items()
        if key == history.right or one.rise(other) > SURE
    ]
    if len(changes) == 1 and collapse(history):  # text without an end is no scheme
        return None
    return (
        f"completions grew from {before} to {now} tokens, and {', '.join(changes)}: the length, not the answer, may "
        "be what pays; set `soft_punish_cache`, or weigh the rewards anew"
    )


def entropy(history: History) -> str | None:
    if not history.earlier or history.is_solved or not history.flat >= 0.5:
        return None
    start, now = history.level(history.earlier[:PATIENCE][-1], "entropy"), history.now("entropy")
    if not now.mean < start.mean / 10:
        return None
    score = f"{_name(history.right)} {history.now(history.right).mean:.2g}"
    return (
        f"the entropy fell from {start} to {now} nats a token, and {history.flat:.0%} of the groups have equal "
        f"rewards at {score}: lower `learning_rate`, raise `temperature` or `epsilon_high`, or set `entropy_coef`"
    )


def flat(history: History) -> str | None:
    paid = [key for key in history.rewards if not _punishes(key)]
    if not history.flat >= 0.9 or history.is_solved or all(history.is_stuck(key) for key in paid):
        return None
    return (
        f"{history.flat:.0%} of the groups have equal rewards, and no advantage, at {_name(history.right)} "
        f"{history.now(history.right).mean:.2g}: choose problems by `min_pass_rate` and `max_pass_rate`, set "
        "`max_resamples`, or raise `num_generations`"
    )


def kl(history: History) -> str | None:
    now = history.now("kl")
    if not history.earlier or not now.mean > 1:
        return None
    least = min((history.level(logs, "kl") for logs in history.earlier), key=lambda one: one.mean)
    if not now.mean > 10 * least.mean:
        return None
    return (
        f"the KL to the reference rose from {least} to {now} nats a token: lower `learning_rate`, raise `beta`, or go "
        "back to an earlier checkpoint"
    )


def truncation(history: History) -> str | None:
    share = history.now(TRUNCATED).mean
    if not share > 0.5:
        return None
    return (
        f"{share:.0%} of the completions reach `max_completion_length`: raise it, shorten the task, or set "
        "`soft_punish_cache`"
    )


def mismatch(history: History) -> str | None:
    now = history.now("sampling/kl")
    if not now.mean > history.tolerated_kl:
        return None
    return (
        f"the engine that writes the rollouts is {now} nats a token (`sampling/kl`) away from the model that learns "
        f"from them, where rounding explains {history.tolerated_kl:g}"
    )


def _punishes(key: str) -> bool:
    return "punish" in key or "penalty" in key


def _name(key: str) -> str:
    return key.removeprefix("rewards/").removesuffix("/mean")


def find_alarms(history: History) -> dict[str, str]:
    """Name of each alarm -> one sentence; `stuck:` and a reward's name for each one that is."""
    if len(history.recent) < PATIENCE:
        return {}
    steps = history.recent[-1]["step"] - history.recent[0]["step"] + 1
    found = {
        f"stuck:{_name(key)}": f"{_name(key)} has not varied for {steps} steps"
        for key in history.rewards
        if history.is_stuck(key)
    }
    rest = {alarm.__name__: alarm(history) for alarm in (collapse, length, entropy, flat, kl, truncation, mismatch)}
    return found | {name: sentence for name, sentence in rest.items() if sentence}


class Alarms(TrainerCallback):
    """Warns when an alarm begins, and again only after `PATIENCE` logs without it. A reward that is stuck above 0 may
    be a solved task: that is information.

    Args:
        trainer: The `GRPOTrainer`, whose own log buffers are read (already gathered from all processes).
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.seen: dict[str, int] = {}  # alarm -> number of the log that had it last

    def find(self, args, state) -> dict[str, str]:
        groups = args.generation_batch_size // args.num_generations
        is_fp32 = not (args.bf16 or args.fp16) and self.trainer.base_model.dtype == torch.float32
        found = find_alarms(History(state.log_history, groups, self.trainer.reward_func_names[0], is_fp32))
        count = len(state.log_history)
        begun = {alarm for alarm in found if count - self.seen.get(alarm, -count) > PATIENCE}
        self.seen |= dict.fromkeys(found, count)
        return {alarm: sentence for alarm, sentence in found.items() if alarm in begun}

    def on_train_begin(self, args, state, control, **kwargs):
        self.find(args, state)  # what a resumed run has said before

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "reward" not in (logs or {}):
            return
        for alarm, sentence in self.find(args, state).items():
            kind, _, reward = alarm.partition(":")
            may_be_solved = kind == "stuck" and (logs.get(f"rewards/{reward}/mean") or 0) > 0
            explained = {"stuck": self.why_stuck, "collapse": self.why_collapsed, "mismatch": self.why_mismatched}
            causes = explained.get(kind, lambda *_: [])(args, reward)
            words = f"{kind}: {sentence}" + (": " if causes else "") + "; ".join(causes)
            log.log(logging.INFO if may_be_solved else logging.WARNING, words)

    def why_stuck(self, args, reward: str) -> list[str]:
        """By the newest completions."""
        logs = self.trainer._logs
        return diagnose(
            [None if math.isnan(value) else value for value in logs["rewards"][reward]],
            list(logs["completion"]),
            prompts=list(logs["prompt"]),
            lengths=list(logs["extra"]["tokens"]),
            max_completion_length=args.max_completion_length,
            reasons=list(logs["extra"].get(f"{reward.removesuffix('_reward')}/reason", [])),
        )

    def why_collapsed(self, args, _) -> list[str]:
        loops = -fmean(RepetitionPenalty(LOOP)(completions=list(self.trainer._logs["completion"])))
        causes = [f"{loops:.0%} of the newest text repeats itself"] if loops > 0.3 else []
        return [
            *causes,
            f"`learning_rate: {args.learning_rate}` or `max_grad_norm: {args.max_grad_norm}` may be too high, or a "
            "reward pays for something else; go back to an earlier checkpoint",
        ]

    def why_mismatched(self, args, _) -> list[str]:
        """What is known first, then what may be."""
        off = {"top_p": (1.0,), "top_k": (0,), "min_p": (None, 0.0), "repetition_penalty": (1.0,)}
        filters = {name: getattr(args, name) for name in off if getattr(args, name) not in off[name]}
        causes = []
        if filters:
            words = ", ".join(f"`{name}: {value}`" for name, value in filters.items())
            causes.append(f"{words} changes the probabilities of the engine, and not the trainer's")
        if any(isinstance(module, torch.nn.Dropout) and module.p for module in self.trainer.model.modules()):
            causes.append("dropout acts in the trainer, and not in the engine: set `lora_dropout: 0`")
        if getattr(self.trainer.base_model.config, "num_experts", None) and not self.trainer.replays_routing:
            causes.append("the routers of both ends choose for themselves: see `replay_routing`")
        if args.vllm_mode == "server":
            causes.append("the server may lack `--logprobs-mode processed_logprobs` or the trainer's `--dtype`")
        causes.append("the engine may compute in another dtype, hold stale weights, or read the config otherwise")
        return causes
