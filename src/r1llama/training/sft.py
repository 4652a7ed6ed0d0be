"""Supervised fine-tuning: TRL's SFTTrainer from a recipe.

    accelerate launch -m r1llama.training.sft --config recipe.yaml [--key value ...]

The dataset holds `prompt` and `completion`, or `messages`, or `text`; or raw rows and a `task`.
"""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from trl import ModelConfig, SFTConfig, SFTTrainer

from r1llama.training import recipe, stage
from r1llama.training.callbacks import SampleCompletions
from r1llama.training.checks import check_chat_template, check_machine, check_values
from r1llama.training.collator import pack_in_rows
from r1llama.training.context import with_rope
from r1llama.training.recipe import RecipeError
from r1llama.training.throughput import Perplexity, Throughput
from r1llama.training.whole_rows import OVERLONG, WholeRows

SAMPLE_TOKENS = 256


@dataclass
class SFTArguments(stage.StageArguments):
    """Adds what becomes of rows that are too long."""

    overlong: str = field(
        default="drop",
        metadata={"help": "Rows of more than max_length tokens: drop (leave out and count), stop, or truncate."},
    )


class SFTStageTrainer(WholeRows, Perplexity, SFTTrainer):
    """SFTTrainer that also tells the perplexity, and cuts no row unasked."""


def main(argv: list[str]) -> dict[str, float]:
    """Run the stage.

    Args:
        argv: Such as `["--config", "sft.yaml", "--seed", "1"]`.

    Returns:
        The trainer's metrics.

    Raises:
        RecipeError: The run cannot work; raised before the model loads.
    """
    return fine_tune(argv, "sft")


def fine_tune(
    argv: list[str],
    name: str,
    arguments: type[SFTArguments] = SFTArguments,
    check=lambda args, training_args, rows, tokenizer: None,
    trainer_class=lambda args: SFTStageTrainer,
    sampler: type[SampleCompletions] = SampleCompletions,
) -> dict[str, float]:
    """What supervised stages share; `main` says the rest.

    Args:
        argv: As for `main`.
        name: Of the stage.
        arguments: The dataclass of the stage's own keys.
        check: Refuses rows that the stage cannot learn from.
        trainer_class: The trainer, by the stage's arguments.
        sampler: Writes the samples of `log_completions_steps`.
    """
    args, training_args, model_args, values = recipe.read(
        (arguments, SFTConfig, ModelConfig), argv, check=check_values
    )
    check_machine(values)
    if args.overlong not in OVERLONG:
        raise RecipeError(f"`overlong: {args.overlong}` must be one of {', '.join(OVERLONG)}")
    stage.set_up()
    config = stage.load_config(model_args, training_args.trust_remote_code)
    config = with_rope(config, args.rope_parameters, training_args.max_length)
    context = getattr(config, "max_position_embeddings", None)
    tokenizer = stage.load_tokenizer(model_args, config, training_args.trust_remote_code)
    tokenizer.padding_side = "right"
    stage.set_chat_template(training_args, tokenizer)
    rows = stage.load_dataset(args, args.dataset_train_split, "demonstration")
    if not training_args.chat_template_path:
        check_chat_template(next(iter(rows)), tokenizer)
    check(args, training_args, rows, tokenizer)
    evaluation = None
    if training_args.eval_strategy != "no":
        evaluation = stage.load_dataset(args, args.dataset_test_split, "demonstration")
    resume_from = stage.resume_point(training_args)
    if metrics := stage.finished(training_args, resume_from):
        return metrics
    stage.record(values, resume_from)

    trainer = trainer_class(args)(
        model=stage.load_model(model_args, training_args, config, changed=bool(args.rope_parameters)),
        args=training_args,
        train_dataset=rows,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        overlong=args.overlong,
        **stage.adapters(model_args, config),
    )
    pack_in_rows(trainer)
    Throughput.add_to(trainer, training_args.max_length or context)
    if args.log_completions_steps and "prompt" in rows.column_names:
        path = Path(training_args.output_dir) / "completions" / "samples.jsonl"
        shown = islice(rows if evaluation is None else evaluation, sampler.count)
        prompts = [_render(row["prompt"], tokenizer) for row in shown]
        room = context - max(map(len, tokenizer(prompts)["input_ids"])) if context else SAMPLE_TOKENS
        trainer.add_callback(sampler(path, args.log_completions_steps, trainer, prompts, min(room, SAMPLE_TOKENS)))
    return stage.train(trainer, args, name, resume_from)


def _render(prompt, tokenizer) -> str:
    if isinstance(prompt, str):
        return prompt
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


if __name__ == "__main__":
    stage.run(main)
