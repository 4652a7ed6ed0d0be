"""An outcome verifier: a sequence classifier with one output that tells how likely a completion is right.

    accelerate launch -m r1llama.training.verifier --config verifier.yaml [--key value ...]

Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168. The rows are graded
completions, as `r1llama sample`, the rounds of `r1llama improve` and the completion tables of GRPO hold them:
`prompt`, `completion`, and a reward.

Each completion is a case of its own for the binary cross-entropy, instead of a pair of a right and a wrong one for a
preference loss: no problem is lost whose completions are all right or all wrong, and the output is a probability, so
that it is a reward as it is (`reward_funcs: [runs/x/verifier]`).

The held-out split is judged by the area under the ROC curve (over all completions, and within each problem), and by
what the verifier is for: best-of-n, beside the first completion, the majority vote and the best possible choice.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import ModelConfig

from r1llama.data.loading import DataError, load_rows
from r1llama.rewards import extract_answer
from r1llama.rewards.reward_model import encode, render
from r1llama.rewards.text import completion_text
from r1llama.training import recipe, stage
from r1llama.training.checks import check_chat_template, check_machine, check_values
from r1llama.training.recipe import RecipeError


@dataclass
class VerifierArguments(stage.StageArguments):
    """Adds what tells right from wrong."""

    reward_column: str = field(default="accuracy_reward", metadata={"help": "Column of the completions' grade."})
    threshold: float = field(default=1.0, metadata={"help": "A grade from here on is right."})
    balance: bool = field(
        default=True,
        metadata={"help": "Repeat the rarer kind until both are as many: scores are then odds from an even start."},
    )
    max_length: int = field(
        default=1024, metadata={"help": "Tokens of prompt and completion; longer ones lose their beginning."}
    )


@dataclass
class VerifierConfig(TrainingArguments):
    """transformers' TrainingArguments, with an evaluation after every epoch."""

    eval_strategy: str = field(default="epoch", metadata={"help": "When to judge the held-out split; no: never."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that a hub repository holds."})


class VerifierTrainer(Trainer):
    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """As TRL's trainers are asked."""
        super().create_model_card(model_name=model_name, dataset=dataset_name, tags=tags, tasks="text-classification")


def main(argv: list[str]) -> dict[str, float]:
    """Run the stage.

    Args:
        argv: Such as `["--config", "verifier.yaml", "--seed", "1"]`.

    Returns:
        The trainer's metrics; `eval_auc`, `eval_best_of_8` and so on are those of `judge`.

    Raises:
        RecipeError: The run cannot work; raised before the model loads.
    """
    args, training_args, model_args, values = recipe.read(
        (VerifierArguments, VerifierConfig, ModelConfig), argv, check_values
    )
    for key in ("use_peft", "task", "system_prompt"):
        if values[key]:
            raise RecipeError(f"`{key}`: a verifier trains all weights on completions as they are: remove it")
    check_machine(values)
    stage.set_up()
    config = stage.load_config(model_args, training_args.trust_remote_code)
    context = getattr(config, "max_position_embeddings", None)
    if context and args.max_length > context:
        raise RecipeError(f"`max_length: {args.max_length}` exceeds the model's context: set it to {context} or less")
    tokenizer = stage.load_tokenizer(model_args, config, training_args.trust_remote_code)
    rows = _load(args, args.dataset_train_split)
    check_chat_template(rows[0], tokenizer)
    held_out = None
    if training_args.eval_strategy != "no":
        held_out = _load(args, args.dataset_test_split)
        seen = set(map(str, held_out["prompt"]))
        apart = rows.filter(lambda row: str(row["prompt"]) not in seen, desc="held-out problems")
        if len(apart) < len(rows):
            stage.log.info("left out %d completions of held-out problems", len(rows) - len(apart))
        rows = apart
    right = _is_right(rows, args)
    stage.log.info("%d completions, %d of them right", len(rows), right.sum())
    if not 0 < right.sum() < len(rows):
        raise RecipeError(
            f"of {len(rows)} completions to learn from, {right.sum()} have `{args.reward_column}` from "
            f"{args.threshold} on: nothing to tell apart; change `reward_column` or `threshold`, or sample more"
        )
    if args.balance:
        rows = rows.select(_balanced(right))
    resume_from = stage.resume_point(training_args)
    if metrics := stage.finished(training_args, resume_from):
        return metrics
    stage.record(values, resume_from)

    set_seed(training_args.seed)  # of the new head
    model = AutoModelForSequenceClassification.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        trust_remote_code=training_args.trust_remote_code,
        attn_implementation=model_args.attn_implementation,
        dtype=model_args.dtype,
        num_labels=1,
        problem_type="multi_label_classification",  # binary cross-entropy
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = VerifierTrainer(
        model=model,
        args=training_args,
        train_dataset=_tokenized(rows, tokenizer, args),
        eval_dataset=held_out and _tokenized(held_out, tokenizer, args),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=held_out and (lambda found: judge(held_out, found.label_ids[:, 0], found.predictions[:, 0])),
    )
    return stage.train(trainer, args, "verifier", resume_from)


def _load(args: VerifierArguments, split: str):
    """The completions that have a grade."""
    try:
        rows = load_rows(args.dataset_name, args.dataset_config, split)
    except DataError as error:
        raise RecipeError(f"`dataset_name`: {error}") from error
    missing = {"prompt", "completion", args.reward_column} - set(rows.column_names)
    if missing:
        raise RecipeError(
            f"a verifier needs the columns `prompt`, `completion` and `{args.reward_column}` (`reward_column`), but "
            f"{args.dataset_name} has {', '.join(rows.column_names)}"
        )
    graded = rows.filter(lambda row: row[args.reward_column] is not None, desc="graded")
    if len(graded) < len(rows):
        stage.log.info("split `%s`: left out %d completions without a grade", split, len(rows) - len(graded))
    if not len(graded):
        raise RecipeError(f"no row of split `{split}` has a `{args.reward_column}`")
    return graded


def _is_right(rows, args: VerifierArguments) -> np.ndarray:
    return np.asarray(rows[args.reward_column], dtype=float) >= args.threshold


def _balanced(right: np.ndarray) -> np.ndarray:
    """Indices of all rows, those of the rarer kind repeated."""
    kinds = [np.flatnonzero(right), np.flatnonzero(~right)]
    most = max(map(len, kinds))
    return np.sort(np.concatenate([np.resize(kind, most) for kind in kinds]))


def _tokenized(rows, tokenizer, args: VerifierArguments):
    def convert(batch):
        texts = render(batch["prompt"], batch["completion"], tokenizer)
        found = encode(texts, tokenizer, args.max_length)
        return dict(found) | {"labels": [[float(grade >= args.threshold)] for grade in batch[args.reward_column]]}

    return rows.map(convert, batched=True, remove_columns=rows.column_names, desc="tokens")


def judge(rows, right, scores) -> dict[str, float]:
    """What the scores of graded completions are worth.

    Args:
        rows: Dataset with `prompt` and `completion`, in any order.
        right: 1 or 0 for each.
        scores: The verifier's, larger is better.

    Returns:
        `auc`; `auc_within`, the mean over the problems that have both kinds; and for n = 2, 4, 8 ... up to what every
        problem has: the share of problems right by `best_of_{n}`, by `majority_of_{n}`, and at best (`oracle_of_{n}`),
        of their first n completions. `pass_at_1` is the share of all completions that are right. The majority is that
        of the answers; where no completion has one, it is left out.
    """
    right, scores = np.asarray(right) > 0.5, np.asarray(scores, dtype=float)
    problems: dict[str, list[int]] = {}
    for index, prompt in enumerate(rows["prompt"]):
        problems.setdefault(str(prompt), []).append(index)
    groups = [np.array(group) for group in problems.values()]
    found = {"pass_at_1": float(right.mean())}
    within = [area for group in groups if (area := auc(right[group], scores[group])) is not None]
    if (area := auc(right, scores)) is not None:
        found["auc"] = area
    if within:
        found["auc_within"] = float(np.mean(within))
    answers = [extract_answer(completion_text(completion)).value for completion in rows["completion"]]
    count = 2
    while count <= min(map(len, groups)):
        first = [group[:count] for group in groups]
        found[f"best_of_{count}"] = float(np.mean([right[group[scores[group].argmax()]] for group in first]))
        if any(answers):
            found[f"majority_of_{count}"] = float(np.mean([_majority(group, answers, right) for group in first]))
        found[f"oracle_of_{count}"] = float(np.mean([right[group].any() for group in first]))
        count *= 2
    return found


def _majority(group, answers, right) -> bool:
    votes = Counter(answers[index] for index in group if answers[index])
    if not votes:
        return False
    (answer, _), *_ = votes.most_common(1)
    return next(right[index] for index in group if answers[index] == answer)


def auc(right: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve: how often a right one scores above a wrong one, ties counting half; None without
    both."""
    positive, negative = scores[right], np.sort(scores[~right])
    if not len(positive) or not len(negative):
        return None
    below, up_to = (np.searchsorted(negative, positive, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(negative))


if __name__ == "__main__":
    stage.run(main)
