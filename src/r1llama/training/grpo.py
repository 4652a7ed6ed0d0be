"""Group-relative policy optimisation: TRL's GRPOTrainer, with shared prompts and replayed routing, from a recipe.

    accelerate launch -m r1llama.training.grpo --config recipe.yaml [--key value ...]

The dataset holds `prompt` (text or chat messages) and whatever columns the rewards ask for, such as `solution`; or raw
rows and a `task`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from trl import GRPOConfig, ModelConfig

from r1llama.rewards import get_reward, required_columns
from r1llama.training import recipe, stage
from r1llama.training.callbacks import CompletionsFile, RewardAlarm
from r1llama.training.checks import check_machine, check_prompts, check_rewards, check_values
from r1llama.training.recipe import RecipeError
from r1llama.training.routing_replay import RoutingReplayGRPOTrainer


@dataclass
class GRPOArguments(stage.StageArguments):
    """Adds the rewards, the sharing of prompts and the replay of routing."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy", "format"],
        metadata={"help": "Rewards: names in r1llama.rewards, or dotted paths. `reward_weights` weighs them."},
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
            "experts and rollouts by transformers."
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
    args, training_args, model_args, values = recipe.read((GRPOArguments, GRPOConfig, ModelConfig), argv, check_values)
    check_machine(values)
    stage.set_up()
    try:
        rewards = [get_reward(name) for name in args.reward_funcs]
    except (ValueError, KeyError, ImportError, AttributeError) as error:
        raise RecipeError(f"`reward_funcs`: {error}") from error
    config = stage.load_config(model_args, training_args.trust_remote_code)
    tokenizer = stage.load_tokenizer(model_args, config, training_args.trust_remote_code)
    rows = stage.load_dataset(args, args.dataset_train_split, "problem")
    evaluation = None
    if training_args.eval_strategy != "no":
        evaluation = stage.load_dataset(args, args.dataset_test_split, "problem")
    needed = [set(required_columns(reward)) for reward in rewards]
    for part in filter(None, (rows, evaluation)):
        check_rewards(args.reward_funcs, training_args.reward_weights, needed, part.column_names)
        check_prompts(part, tokenizer, config, training_args.max_completion_length)
    resume_from = stage.resume_point(training_args)
    if metrics := stage.finished(training_args, resume_from):
        return metrics
    # The rollouts in use are not part of a checkpoint: between two generations, resuming draws new ones.
    rounds = training_args.steps_per_generation * training_args.num_iterations
    period = math.ceil(rounds / training_args.gradient_accumulation_steps)
    if training_args.save_steps % period:
        stage.log.warning("for exact resuming, make `save_steps` a multiple of %d, the steps per generation", period)
    stage.record(values, resume_from)

    trainer = RoutingReplayGRPOTrainer(
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
    trainer.add_callback(RewardAlarm(trainer))
    if args.log_completions_steps:
        path = Path(training_args.output_dir) / "completions" / "rollouts.jsonl"
        trainer.add_callback(CompletionsFile(path, args.log_completions_steps, trainer))
    return stage.train(trainer, args, "grpo", resume_from)


if __name__ == "__main__":
    stage.run(main)
