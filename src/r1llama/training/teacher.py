"""Distillation from a teacher's probabilities: what `r1llama distill` runs if `teacher_model_name_or_path` is set.

At every token of a completion, the student's next-token distribution moves towards the teacher's, by the generalised
Jensen-Shannon divergence of Agarwal et al., "On-Policy Distillation of Language Models" (arXiv 2306.13649): `beta` 0
is the forward KL divergence, 1 the reverse one. TRL's `DistillationTrainer` computes it tile by tile, without the
logits of a whole batch. `lmbda`, as in the paper, is whose completions they are:

    1    the student's own, sampled for each step (on-policy): it learns what to do where it gets itself
    0    the dataset's (logit distillation): no sampling, and the teacher's traces as they are

Both models need one vocabulary.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

from trl import DistillationConfig, DistillationTrainer, ModelConfig, apply_chat_template, is_conversational

from r1llama.training import recipe, stage
from r1llama.training.callbacks import SampledFormat
from r1llama.training.checks import check_machine, check_prompts, check_values
from r1llama.training.context import with_rope
from r1llama.training.recipe import RecipeError

KEY = "teacher_model_name_or_path"


@dataclass
class TeacherArguments(stage.StageArguments):
    """Adds whose completions the student learns from."""

    lmbda: float = field(
        default=1.0,
        metadata={"help": "Share of steps on the student's own completions; the others take the dataset's."},
    )

    def __post_init__(self):
        if not 0 <= self.lmbda <= 1:
            raise ValueError(f"`lmbda: {self.lmbda}` must lie in [0, 1]")


class TeacherTrainer(DistillationTrainer):
    """TRL's `DistillationTrainer`, which can also learn along the completions of the dataset.

    Whose completions a step takes is drawn from the seed and the step's number, so every process draws the same, and a
    resumed run what the first one drew. Evaluation takes the student's if `lmbda` is 1, else the dataset's.

    Args:
        *args: As `DistillationTrainer` takes them.
        lmbda: Share of steps on the student's own completions; below 1, rows need a `completion`.
        **kwargs: As `DistillationTrainer` takes them.
    """

    def __init__(self, *args, lmbda: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.lmbda = lmbda
        self._completion_ids: list[list[int]] | None = None

    def _generate_and_score_completions(self, inputs):
        if self.model.training:
            own = random.Random(f"{self.args.seed} {self.state.global_step}").random() < self.lmbda
            self._metrics["train"]["on_policy"].append(float(own))
        else:
            own = self.lmbda == 1
        self._completion_ids = None if own else [completion_ids(row, self._tokenizer) for row in inputs]
        return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, **kwargs):
        if self._completion_ids is not None:
            return self._completion_ids
        return super()._generate_single_turn(prompt_ids, images, multimodal_fields, **kwargs)


def completion_ids(row: dict, tokenizer) -> list[int]:
    """Token ids of a row's completion as it follows the rendered prompt, with the end of the turn or text."""
    if is_conversational(row):
        text = apply_chat_template({"prompt": row["prompt"], "completion": row["completion"]}, tokenizer)["completion"]
    else:
        text = row["completion"].removesuffix(tokenizer.eos_token) + tokenizer.eos_token
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def main(argv: list[str]) -> dict[str, float]:
    """Run the stage.

    Args:
        argv: Such as `["--config", "distill.yaml", "--teacher_model_name_or_path", "runs/large"]`.

    Returns:
        The trainer's metrics.

    Raises:
        RecipeError: The run cannot work; raised before a model loads.
    """
    args, training_args, model_args, values = recipe.read(
        (TeacherArguments, DistillationConfig, ModelConfig), argv, check_values
    )
    if args.dataset_streaming:
        raise RecipeError(
            f"`dataset_streaming: true` and `{KEY}`: prompts are checked before training, so read them all"
        )
    check_machine(values)
    stage.set_up()
    config = stage.load_config(model_args, training_args.trust_remote_code)
    config = with_rope(config, args.rope_parameters, None)
    tokenizer = stage.load_tokenizer(model_args, config, training_args.trust_remote_code)
    check_teacher(training_args, config, tokenizer)
    rows = _load(args, args.dataset_train_split, training_args, tokenizer, config)
    batch = training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size
    if len(rows) < batch:
        raise RecipeError(f"{len(rows)} rows do not fill one step of {batch}: lower `per_device_train_batch_size`")
    evaluation = None
    if training_args.eval_strategy != "no":
        evaluation = _load(args, args.dataset_test_split, training_args, tokenizer, config)
    resume_from = stage.resume_point(training_args)
    if metrics := stage.finished(training_args, resume_from):
        return metrics
    stage.record(values, resume_from)

    trainer = TeacherTrainer(
        lmbda=args.lmbda,
        model=stage.load_model(model_args, training_args, config, changed=bool(args.rope_parameters)),
        teacher_model=training_args.teacher_model_name_or_path,
        args=training_args,
        train_dataset=rows,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        **stage.adapters(model_args, config),
    )
    if getattr(trainer.model, "mtp", None) is not None:
        trainer.model.mtp.requires_grad_(False)  # the teacher says nothing about the token after the next
    if args.log_completions_steps:
        path = Path(training_args.output_dir) / "completions" / "samples.jsonl"
        prompts = [_render(prompt, tokenizer) for prompt in rows["prompt"][: SampledFormat.count]]
        length = training_args.max_completion_length
        trainer.add_callback(SampledFormat(path, args.log_completions_steps, trainer, prompts, length))
    return stage.train(trainer, args, "distill", resume_from)


def check_teacher(training_args: DistillationConfig, config, tokenizer) -> None:
    """Refuse a teacher whose probabilities are not over the student's tokens.

    Args:
        training_args: Names the teacher.
        config: The student's.
        tokenizer: The student's.

    Raises:
        RecipeError: No such model, no weights, another vocabulary.
    """
    name = training_args.teacher_model_name_or_path
    named = ModelConfig(model_name_or_path=name, model_revision=training_args.teacher_model_revision or "main")
    try:
        teacher_config = stage.load_config(named, training_args.trust_remote_code)
        teacher_tokenizer = stage.load_tokenizer(named, teacher_config, training_args.trust_remote_code)
    except RecipeError as error:
        raise RecipeError(str(error).replace("`model_name_or_path", f"`{KEY}")) from error
    if Path(name).is_dir() and not any(Path(name).glob("*.safetensors")):
        raise RecipeError(f"`{KEY}: {name}` holds no weights: a teacher must have learned something")
    ours, theirs = tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if ours != theirs:
        differing = sorted((token for token in ours | theirs if ours.get(token) != theirs.get(token)), key=repr)
        raise RecipeError(
            f"`{KEY}: {name}` has another vocabulary, {len(differing)} of {len(ours | theirs)} tokens differ: "
            f"{differing[0]!r} is {ours.get(differing[0], 'missing')} for the student and "
            f"{theirs.get(differing[0], 'missing')} for the teacher. Take a teacher of the student's family, or let "
            "the teacher write traces, and learn from them without this key"
        )
    if config.vocab_size != teacher_config.vocab_size:
        raise RecipeError(
            f"`{KEY}: {name}` has `vocab_size: {teacher_config.vocab_size}`, and the student {config.vocab_size}: the "
            "tokens are the same, so resize the smaller one's embeddings (`model.resize_token_embeddings`)"
        )


def _load(args: TeacherArguments, split: str, training_args: DistillationConfig, tokenizer, config):
    """Rows with `prompt`, and with `completion` where some steps need it."""
    rows = stage.load_dataset(args, split, "problem" if args.lmbda == 1 else "demonstration")
    if "messages" in rows.column_names:
        rows = rows.map(
            lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
            remove_columns="messages",
        )
    check_prompts(rows, tokenizer, config, training_args.max_completion_length)
    if args.lmbda < 1:
        longest = training_args.max_completion_length
        kept = rows.filter(lambda row: len(completion_ids(row, tokenizer)) <= longest)
        if len(kept) < len(rows):
            stage.log.warning(
                "%d of %d completions are longer than `max_completion_length: %d`: left out",
                len(rows) - len(kept),
                len(rows),
                longest,
            )
        rows = kept
    return rows


def _render(prompt, tokenizer) -> str:
    if isinstance(prompt, str):
        return prompt
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


if __name__ == "__main__":
    stage.run(main)
