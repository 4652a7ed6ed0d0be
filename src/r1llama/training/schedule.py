"""The plan of the learning rate: said before training starts, and refused where a run could not keep it."""

import math

import torch
from transformers import get_scheduler

from .recipe import RecipeError

# What the warm-up is followed by
DESCENTS = {
    "linear": "a straight line",
    "cosine": "a cosine",
    "cosine_with_min_lr": "a cosine",
    "cosine_warmup_with_min_lr": "a cosine",
    "warmup_stable_decay": "the decay",
}


def optimizer_steps(training_args, rows: int) -> int:
    """Steps of the run: `max_steps`, or `num_train_epochs` over `rows` examples, as the trainer counts them."""
    if training_args.max_steps > 0:
        return training_args.max_steps
    batch = training_args.per_device_train_batch_size
    whole = rows // batch if training_args.dataloader_drop_last else math.ceil(rows / batch)
    batches = math.ceil(whole / training_args.world_size)
    return math.ceil(
        training_args.num_train_epochs * max(1, math.ceil(batches / training_args.gradient_accumulation_steps))
    )


def plan(training_args, steps: int) -> str:
    """The schedule in a line, with the learning rate at its corners, taken from the schedule itself.

    Args:
        training_args: `learning_rate`, `warmup_steps`, `lr_scheduler_type` and `lr_scheduler_kwargs`.
        steps: Optimizer steps of the run.

    Raises:
        RecipeError: Its parts are longer than the run, or it lacks an argument.
    """
    kind, extra = training_args.lr_scheduler_type.value, training_args.lr_scheduler_kwargs or {}
    warmup = training_args.get_warmup_steps(steps)
    decay = extra.get("num_decay_steps", 0)
    if kind == "warmup_stable_decay" and not decay:
        raise RecipeError(
            "`lr_scheduler_type: warmup_stable_decay` needs to know when to decay: set "
            f"`lr_scheduler_kwargs: {{num_decay_steps: {max(1, steps // 5)}}}`"
        )
    stable = extra.get("num_stable_steps", max(0, steps - warmup - decay)) if decay else 0
    if warmup + stable + decay > steps:
        parts = {"warmup_steps": warmup, "num_stable_steps": stable, "num_decay_steps": decay}
        named = " and ".join(f"`{name}` ({length})" for name, length in parts.items() if length)
        raise RecipeError(f"{named} take more than the run's {steps} steps: shorten them or raise `max_steps`")
    if kind in ("reduce_lr_on_plateau", "greedy"):
        return f"{steps} steps, the learning rate starts at {training_args.learning_rate:g} and follows the loss"
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=training_args.learning_rate)
    try:
        factor = get_scheduler(kind, optimizer, warmup, steps, extra).lr_lambdas[0]
    except TypeError as error:
        raise RecipeError(
            f"`lr_scheduler_kwargs: {extra}` does not fit `lr_scheduler_type: {kind}`: {error}"
        ) from error

    def rate(step):  # that of the step's update; steps count from 1
        return f"{training_args.learning_rate * factor(step - 1):.3g} at step {step}"

    pieces = [f"{steps} steps, learning rate {rate(1)}"]
    if warmup and warmup < steps:
        pieces.append(f"warm-up to {rate(warmup + 1)}")
    if stable:
        pieces.append(f"stable until {rate(warmup + stable + 1)}")
    if steps > 1:
        pieces.append(f"{DESCENTS.get(kind, kind)} to {rate(steps)}")
    return ", ".join(pieces)
