"""Group-relative policy optimisation: TRL's GRPOTrainer, with shared prompts and replayed routing, from a recipe.

    accelerate launch -m r1llama.training.grpo --config recipe.yaml [--key value ...]

The dataset holds `prompt` (text or chat messages) and whatever columns the rewards ask for, such as `solution`; or raw
rows and a `task`.
"""

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path

from datasets import IterableDataset
from trl import GRPOConfig, ModelConfig

from r1llama.rewards import get_reward, required_columns
from r1llama.rewards.length import SoftOverlongPunishment
from r1llama.training import recipe, stage
from r1llama.training.alarms import Alarms
from r1llama.training.algorithms import preset
from r1llama.training.checks import check_machine, check_opened_thoughts, check_prompts, check_rewards, check_values
from r1llama.training.completions import CompletionTables
from r1llama.training.curriculum import by_pass_rate
from r1llama.training.grpo_trainer import R1GRPOTrainer
from r1llama.training.recipe import RecipeError
from r1llama.training.vllm_client import check_server
from r1llama.training.vllm_rollouts import why_no_vllm

OVERLONG_WEIGHT = 0.5  # see `r1llama.training.algorithms`


@dataclass
class GRPOArguments(stage.StageArguments):
    """Adds the algorithm, the rewards, dynamic sampling, the sharing of prompts and the replay of routing."""

    algorithm: str | None = field(
        default=None,
        metadata={
            "help": "r1, dr_grpo, dapo, gspo or cispo: sets what its paper does, where the recipe says nothing else; "
            "see r1llama.training.algorithms. Unset: TRL's defaults."
        },
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy", "format"],
        metadata={
            "help": "Rewards: names in r1llama.rewards, or dotted paths; in YAML also `{name: ..., parameter: ...}`. "
            "`reward_weights` weighs them."
        },
    )
    reward_schedules: dict | None = field(
        default=None,
        metadata={
            "help": "Weights that change while training, in YAML: name of a reward -> [[step, weight], ...], linear "
            "between the points. Instead of its number in `reward_weights`."
        },
    )
    soft_punish_cache: float = field(
        default=0.0,
        metadata={
            "help": "Soft overlong punishment over the last so many tokens before `max_completion_length` (below 1: "
            f"that share of it), from 0 to -1 with weight {OVERLONG_WEIGHT}; 0: none."
        },
    )
    min_pass_rate: float | None = field(
        default=None,
        metadata={"help": "Leave out problems whose `pass_rate` is below; `r1llama pass-rate` writes that column."},
    )
    max_pass_rate: float | None = field(
        default=None, metadata={"help": "Leave out problems whose `pass_rate` is above; 0.1 to 0.6 is a usual band."}
    )
    easy_first: bool = field(
        default=False,
        metadata={"help": "From the highest `pass_rate` to the lowest, in each epoch, instead of a random order."},
    )
    max_resamples: int = field(
        default=0,
        metadata={
            "help": "Dynamic sampling: replace groups of equal rewards by groups of other prompts, with up to so many "
            "more generations; 0: train on what comes."
        },
    )
    share_prompts: bool = field(
        default=True,
        metadata={
            "help": "Compute each prompt once for its group, in rollouts and updates: the same numbers, sooner. For "
            "r1llama models; others, and prompt-learning adapters, run as in TRL."
        },
    )
    replay_routing: bool = field(
        default=True,
        metadata={
            "help": "Train each token with the experts that its rollout used, weighted by the current router: "
            "steadier, because rounding and later steps then move no token to other experts. For r1llama models with "
            "experts and rollouts by transformers or vLLM; start a server with --enable-return-routed-experts."
        },
    )


def main(argv: list[str]) -> dict[str, float]:
    """Run the stage.

    Args:
        argv: Such as `["--config", "grpo.yaml", "--seed", "1"]`.

    Returns:
        The trainer's metrics.

    Raises:
        RecipeError: The run cannot work; raised before the model loads.
    """
    args, training_args, model_args, values = recipe.read(
        (GRPOArguments, GRPOConfig, ModelConfig), argv, check_values, preset
    )
    check_machine(values)
    stage.set_up()
    _choose_engine(training_args)
    try:
        rewards = [get_reward(name) for name in args.reward_funcs]
    except (ValueError, KeyError, ImportError, AttributeError) as error:
        raise RecipeError(f"`reward_funcs`: {error}") from error
    config = stage.load_config(model_args, training_args.trust_remote_code)
    tokenizer = stage.load_tokenizer(model_args, config, training_args.trust_remote_code)
    rows = stage.load_dataset(args, args.dataset_train_split, "problem")
    rows = by_pass_rate(rows, args.min_pass_rate, args.max_pass_rate, args.easy_first, training_args.seed)
    if args.easy_first:
        training_args.shuffle_dataset = values["shuffle_dataset"] = False
    if args.max_resamples and isinstance(rows, IterableDataset):
        raise RecipeError("`max_resamples` draws other problems at random, but the dataset streams: set it to 0")
    evaluation = None
    if training_args.eval_strategy != "no":
        evaluation = stage.load_dataset(args, args.dataset_test_split, "problem")
    names = [spec["name"] if isinstance(spec, dict) else spec for spec in args.reward_funcs]
    needed = [set(required_columns(reward)) for reward in rewards]
    longest = 0
    for part in filter(None, (rows, evaluation)):
        check_rewards(names, training_args.reward_weights, needed, part.column_names)
        keywords = training_args.chat_template_kwargs
        length = check_prompts(part, tokenizer, config, training_args.max_completion_length, keywords)
        longest = max(longest, length)
        check_opened_thoughts(part[0], tokenizer, keywords, rewards)
    if training_args.use_vllm and training_args.vllm_mode == "colocate":
        _fit_engine(training_args, config, longest)
    resume_from = stage.resume_point(training_args)
    if metrics := stage.finished(training_args, resume_from):
        return metrics
    schedules = _schedules(args.reward_schedules or {}, names)
    if args.soft_punish_cache:
        limit, cache = training_args.max_completion_length, args.soft_punish_cache
        rewards.append(SoftOverlongPunishment(limit, round(cache * limit if cache < 1 else cache)))
        training_args.reward_weights = [*(training_args.reward_weights or [1.0] * len(names)), OVERLONG_WEIGHT]
    # The rollouts in use are not part of a checkpoint: between two generations, resuming draws new ones.
    rounds = training_args.steps_per_generation * training_args.num_iterations
    period = math.ceil(rounds / training_args.gradient_accumulation_steps)
    if training_args.save_steps % period:
        stage.log.warning("for exact resuming, make `save_steps` a multiple of %d, the steps per generation", period)
    if args.algorithm and rounds <= training_args.gradient_accumulation_steps:
        stage.log.info("each rollout is used for one update: all ratios are 1, and no clip of `epsilon` ever acts")
    if training_args.use_vllm and training_args.vllm_mode == "server":
        precision = "bfloat16" if training_args.bf16 else "float16" if training_args.fp16 else model_args.dtype
        check_server(training_args, precision, longest + training_args.max_completion_length)
    stage.record(values, resume_from)

    trainer = R1GRPOTrainer(
        reward_schedules=schedules,
        max_resamples=args.max_resamples,
        replay_routing=args.replay_routing,
        share_prompts=args.share_prompts,
        model=stage.load_model(model_args, training_args, config),
        reward_funcs=rewards,
        args=training_args,
        train_dataset=rows,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        **stage.adapters(model_args, config),
    )
    if getattr(trainer.model, "mtp", None) is not None:
        trainer.model.mtp.requires_grad_(False)  # its loss would imitate every rollout, whatever the reward
    trainer.add_callback(Alarms(trainer))
    if args.log_completions_steps:
        folder = Path(training_args.output_dir) / "completions"
        trainer.add_callback(CompletionTables(folder, args.log_completions_steps, trainer))
    try:
        return stage.train(trainer, args, "grpo", resume_from)
    except BaseException:
        if trainer.use_vllm and trainer.accelerator.num_processes == 1:  # in a notebook, another engine may follow
            trainer.vllm_generation.close()
        raise


def _choose_engine(training_args) -> None:
    """Where vLLM cannot make the rollouts, transformers does, unless the recipe names a server."""
    reason = why_no_vllm() if training_args.use_vllm else None
    if reason is None:
        return
    if training_args.vllm_mode == "server":
        raise RecipeError(f"`vllm_mode: server`, but {reason}: install it, or set `use_vllm: false`")
    stage.log.warning("`use_vllm: true`, but %s: the rollouts are made by transformers' `generate` instead", reason)
    training_args.use_vllm = False


def _fit_engine(training_args, config, longest: int) -> None:
    """The engine's context is what the longest prompt and completion need; refuse one that would cut them."""
    need = longest + training_args.max_completion_length
    asked = training_args.vllm_max_model_length
    context = getattr(config, "max_position_embeddings", None) or math.inf
    if asked is None:
        training_args.vllm_max_model_length = need
    elif asked < need:
        raise RecipeError(
            f"`vllm_max_model_length: {asked}` would cut completions short: the longest prompt has {longest} tokens, "
            f"and with `max_completion_length: {training_args.max_completion_length}` that makes {need}. Leave it out"
        )
    elif asked > context:
        raise RecipeError(
            f"`vllm_max_model_length: {asked}` is beyond the model's context of {context}: leave it out, for {need}"
        )


def _schedules(schedules: dict, names: list[str]) -> dict[int, list[tuple[float, float]]]:
    """By the index of each reward; refuses what is no schedule."""
    found = {}
    for name, points in schedules.items():
        if name not in names:
            raise RecipeError(f"`reward_schedules`: `{name}` is none of the rewards {', '.join(names)}")
        try:
            found[names.index(name)] = [(float(step), float(weight)) for step, weight in points]
        except (TypeError, ValueError):
            raise RecipeError(f"`reward_schedules`: `{name}` wants [[step, weight], ...], not {points}") from None
        steps = [step for step, _ in found[names.index(name)]]
        if not steps or any(later <= step for step, later in itertools.pairwise(steps)):
            raise RecipeError(f"`reward_schedules`: the steps of `{name}` must rise: {points}")
    return found


if __name__ == "__main__":
    stage.run(main)
