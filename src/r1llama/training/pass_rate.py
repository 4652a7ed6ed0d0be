"""How hard each problem is for a model: the share of its completions that pass.

    r1llama pass-rate --config grpo.yaml --output_file rated.jsonl [--key value ...]
    accelerate launch -m r1llama.training.pass_rate ...

Takes the recipe of a GRPO run: its model draws `num_generations` completions of each problem as the rollouts would,
and the first of its rewards grades them: 1 passes. The problems go to `output_file` as JSON lines with a `pass_rate`
(null: no completion could be judged), the completions beside it. Killed at any moment, it continues where it was. Then
train on it: `dataset_name: rated.jsonl`, no `task`, and `min_pass_rate`, `max_pass_rate` or `easy_first`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from trl import GRPOConfig, ModelConfig

from r1llama.training import recipe, sampling, stage
from r1llama.training.algorithms import preset
from r1llama.training.checks import check_prompts, check_values
from r1llama.training.curriculum import COLUMN
from r1llama.training.grpo import GRPOArguments
from r1llama.training.recipe import RecipeError

PASSES = 1.0


@dataclass
class PassRateArguments(GRPOArguments):
    """The keys of a GRPO recipe, and where to write."""

    output_file: str | None = field(
        default=None, metadata={"help": "JSON lines of the problems with their pass rate."}
    )


def main(argv: list[str]) -> None:
    """Rate the problems; prints a summary as JSON.

    Raises:
        RecipeError, DataError: It cannot work; raised before the model loads.
    """
    kinds = (PassRateArguments, GRPOConfig, ModelConfig)
    args, training_args, model_args, values = recipe.read(kinds, argv, check_values, preset)
    if not args.output_file:
        raise RecipeError("`output_file` is missing: set it with --output_file rated.jsonl")
    stage.set_up()
    if not stage.has_weights(Path(model_args.model_name_or_path)):
        raise RecipeError(f"`model_name_or_path: {model_args.model_name_or_path}` holds no weights: nothing to rate")
    config = stage.load_config(model_args, training_args.trust_remote_code)
    tokenizer = stage.load_tokenizer(model_args, config, training_args.trust_remote_code)
    problems = stage.load_dataset(args, args.dataset_train_split, "problem")
    check_prompts(problems, tokenizer, config, training_args.max_completion_length)
    (reward,) = rewards = sampling.load_rewards(args.reward_funcs[:1], problems.column_names)
    how = sampling.Sampling(
        num_generations=training_args.num_generations,
        temperature=training_args.temperature,
        top_p=training_args.top_p,
        top_k=training_args.top_k,
        max_completion_length=training_args.max_completion_length,
        batch_size=training_args.per_device_train_batch_size * training_args.steps_per_generation,
        dtype=model_args.dtype,
    )
    path = Path(args.output_file)
    samples = path.with_suffix(".completions.jsonl")
    keys = ["model_name_or_path", "dataset_name", "dataset_config", "dataset_train_split", "task", "system_prompt"]
    settings = {key: values[key] for key in [*keys, "seed"]} | vars(how) | {"reward": args.reward_funcs[0]}
    sampling.same_settings(path.with_suffix(".settings.json"), settings)

    def load():
        return sampling.load_model(model_args.model_name_or_path, how.dtype, training_args.trust_remote_code)

    rows = sampling.sample(samples, problems.to_list(), load, tokenizer, rewards, how, training_args.seed)
    rates: list[float | None] = []
    for start in range(0, len(rows), how.num_generations):
        values = [row[reward.__name__] for row in rows[start : start + how.num_generations]]
        judged = [sampling.reaches(value, PASSES) for value in values if value is not None]
        rates.append(sum(judged) / len(judged) if judged else None)
    if PartialState().is_main_process:
        problems = problems.to_list()
        sampling.write_lines(path, [row | {COLUMN: rate} for row, rate in zip(problems, rates, strict=True)])
        known = [rate for rate in rates if rate is not None]
        summary = {
            "problems": len(rates),
            "unjudged": len(rates) - len(known),
            "mean": sum(known) / max(len(known), 1),
            "never": known.count(0),
            "always": known.count(1),
        }
        print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    stage.run(main)
