"""Chain-of-thought distillation: a small model learns the traces of a large one, with more weight on the tags.

    accelerate launch -m r1llama.training.distill --config recipe.yaml [--key value ...]

The dataset holds traces: `prompt` and `completion`, or `messages`, whose answers read
`<think>...</think><answer>...</answer>`; or raw rows and a `task` (`traces` puts reasoning and answer of separate
columns between tags). Rows longer than `max_length` are dropped, not cut: a cut trace teaches not to answer.

With `teacher_model_name_or_path` the student learns from the teacher's probabilities instead, see
`r1llama.training.teacher`.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from transformers import AutoTokenizer
from trl import SFTConfig, is_conversational
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from r1llama.data.chat import TEMPLATES
from r1llama.data.tokenizer import TAGS
from r1llama.rewards.text import completion_text
from r1llama.training import recipe, sft, stage, teacher
from r1llama.training.callbacks import SampledFormat
from r1llama.training.recipe import RecipeError
from r1llama.training.think_weighted import ThinkWeightedSFTTrainer, check_weights

ROWS_LOOKED_AT = 1000
TRACE = "<think>\nr1llama thinks\n</think>\n<answer>\nr1llama answers\n</answer>"


@dataclass
class DistillArguments(sft.SFTArguments):
    """Adds the weights of the tags."""

    tag_weights: dict | str | None = field(
        default=10.0,  # type: ignore[assignment]  # a number is one weight for all
        metadata={
            "help": "Weight of the tags in the loss, where other tokens weigh 1: one number for <think>, </think>, "
            "<answer> and </answer>, or a mapping of tag to weight."
        },
    )

    def __post_init__(self):
        if isinstance(self.tag_weights, str):  # from the command line
            try:
                self.tag_weights = json.loads(self.tag_weights)
            except json.JSONDecodeError as error:
                raise ValueError(f"`tag_weights: {self.tag_weights}` is neither a number nor JSON: {error}") from None
        self.tag_weights = check_weights(self.tag_weights)


def main(argv: list[str]) -> dict[str, float]:
    """Run the stage.

    Args:
        argv: Such as `["--config", "distill.yaml", "--tag_weights", "5"]`.

    Returns:
        The trainer's metrics.

    Raises:
        RecipeError: The run cannot work; raised before the model loads.
    """
    if recipe.sets(argv, "teacher_model_name_or_path"):
        return teacher.main(argv)
    return sft.fine_tune(
        argv,
        "distill",
        DistillArguments,
        check_traces,
        lambda args: partial(ThinkWeightedSFTTrainer, tag_weights=args.tag_weights),
        SampledFormat,
    )


def check_traces(args: DistillArguments, training_args: SFTConfig, rows, tokenizer) -> None:
    """Refuse traces whose tags would not be learned.

    Raises:
        RecipeError: A tag is a special token; no row has a tag; the chat template drops thoughts.
    """
    tags = args.tag_weights
    hidden = [tag for tag in tags if tag in tokenizer.all_special_tokens]
    if hidden:
        raise RecipeError(
            f"`tag_weights`: {hidden[0]} is a special token: it vanishes when a completion is decoded without special "
            "tokens, and with it the format. Add it with `tokenizer.add_tokens(..., special_tokens=False)` instead"
        )
    first = list(islice(rows, ROWS_LOOKED_AT))
    if "input_ids" in first[0]:
        return
    bare = [i for i, row in enumerate(first) if not any(tag in _answer(row, training_args) for tag in tags)]
    if len(bare) == len(first):
        raise RecipeError(
            f"none of {len(first)} rows has {' or '.join(tags)} in its answer, such as row 0: "
            f"{_answer(first[0], training_args)[:80]!r}. Put the reasoning between tags (`task: traces` does it "
            "for columns such as `reasoning` and `answer`), name your own tags in `tag_weights`, or use the stage sft"
        )
    if bare:
        stage.log.warning(
            "%d of %d rows looked at (%.0f%%) have none of %s in their answers, the first is row %d",
            len(bare),
            len(first),
            100 * len(bare) / len(first),
            ", ".join(tags),
            bare[0],
        )
    if is_conversational(first[0]):
        _check_template(tokenizer, training_args, tags)
        if "messages" in first[0] and not training_args.assistant_only_loss:
            stage.log.warning(
                "`messages` without `assistant_only_loss: true` learns the prompts too, and weighs the tags in them"
            )


def _answer(row: dict, training_args: SFTConfig) -> str:
    """What the row's trace says last."""
    return completion_text(row.get("completion") or row.get("messages") or row.get(training_args.dataset_text_field))


def _check_template(tokenizer, training_args: SFTConfig, tags) -> None:
    """Refuse a chat template, the one that `SFTTrainer` will use, that does not write an answer as it is."""
    if path := training_args.chat_template_path:  # a model, whose template TRL takes over
        tokenizer = AutoTokenizer.from_pretrained(path)
    template = tokenizer.chat_template
    if training_args.assistant_only_loss and not has_generation_markers(template):
        template = get_training_chat_template(tokenizer)
    trace = TRACE + "".join(tag for tag in tags if tag not in TAGS)
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": trace}]
    rendered = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    lost = [text for text in ("r1llama thinks", *TAGS, *tags) if rendered.count(text) < trace.count(text)]
    if lost:
        raise RecipeError(
            f"the chat template drops {'the thoughts' if lost[0] == 'r1llama thinks' else lost[0]} from an answer, as "
            "DeepSeek-R1's stock template does: only the rest would be learned. Set `chat_template_path` to one "
            f"that keeps them: one of {', '.join(TEMPLATES)}, or a Jinja file, such as TRL's "
            "trl/chat_templates/deepseek_r1_distill_training.jinja"
        )


if __name__ == "__main__":
    stage.run(main)
