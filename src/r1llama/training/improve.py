"""Self-improvement: rounds of sampling and learning, each judged on held-out problems, until they no longer help.

    r1llama improve --config improve.yaml [--key value ...]

`method: expert_iteration` samples completions, keeps those that are right and well formed, and fine-tunes on them:
STaR (Zelikman et al. 2022, arXiv 2203.14465) and ReST-EM (Singh et al. 2023, arXiv 2312.06585), which start each
fine-tuning from the first model again (`restart: true`). `method: grpo` runs some steps of GRPO a round.

Each round is a folder with what it made; a piece that is finished is never made again, so that a run killed at any
moment continues where it was and ends as if nothing had happened:

    output_dir/round-0/evaluation.jsonl          the first model on the held-out problems
    output_dir/round-1/samples.jsonl             graded completions of the train problems
    output_dir/round-1/kept.jsonl                what is learnt from
    output_dir/round-1/sft.yaml, model/          the stage's recipe and output
    output_dir/round-1/evaluation.jsonl
    output_dir/                                  the best round's model, with the table of the rounds in its card

The stopping rule: a round improves if it answers more held-out problems than the best one so far, by more than
`min_improvement` standard errors of the difference; both answered the same problems, so the error is that of the
paired differences. `patience` rounds without improvement in a row end the run. The best of several rounds is chosen
by the same problems that score it: its accuracy is a little flattered, so quote another test set's.
"""

import gc
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, ModelConfig, SFTConfig

from r1llama.rewards import diagnose
from r1llama.training import grpo, recipe, sft, stage
from r1llama.training.checkpoint import DRAFTS, checkpoints, publish_model, remove, replace_text
from r1llama.training.checks import check_machine, check_prompts, check_values
from r1llama.training.recipe import RecipeError
from r1llama.training.sampling import (
    Sampling,
    load_model,
    load_rewards,
    reaches,
    read_lines,
    same_settings,
    sample,
    select,
    summarise,
    write_lines,
)

STAGES = {
    "expert_iteration": ("sft", sft.main, (stage.StageArguments, SFTConfig, ModelConfig)),
    "grpo": ("grpo", grpo.main, (grpo.GRPOArguments, GRPOConfig, ModelConfig)),
}
OURS = {"model_name_or_path", "output_dir", "seed", "dataset_name", "resume_from_checkpoint"}
MAY_CHANGE = {"rounds", "patience", "min_improvement", "resume_from_checkpoint", "output_dir"}


@dataclass
class ImproveArguments(stage.DataArguments):
    """The keys of the recipe. The problems to learn from are `dataset_train_split`, those that judge a round
    `dataset_test_split`."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "What to improve: a directory or hub id."})
    output_dir: str | None = field(default=None, metadata={"help": "Where the rounds and the best model will lie."})
    resume_from_checkpoint: str = field(
        default="auto", metadata={"help": "auto: continue what lies in output_dir; false: remove it and start over."}
    )
    seed: int = field(default=42, metadata={"help": "Of the sampling and the training; each round adds its number."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that a hub repository holds."})
    method: str = field(default="expert_iteration", metadata={"help": "expert_iteration or grpo."})
    rounds: int = field(default=4, metadata={"help": "At most so many rounds."})
    patience: int = field(default=1, metadata={"help": "So many rounds in a row without improvement end the run."})
    min_improvement: float = field(
        default=1.0,
        metadata={"help": "A round improves if it is better than the best one by more than so many standard errors."},
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy", "format"],
        metadata={"help": "Rewards: names in r1llama.rewards, or dotted paths. The first tells right from wrong."},
    )
    keep_threshold: float = field(default=1.0, metadata={"help": "Keep completions that reach this in each reward."})
    keep_per_problem: int = field(default=4, metadata={"help": "Keep at most so many different ones a problem."})
    keep_max_pass_rate: float | None = field(
        default=None, metadata={"help": "Leave out problems that more than this share of the completions solve."}
    )
    restart: bool = field(
        default=True,
        metadata={"help": "Fine-tune the first model in every round, as ReST-EM; false: the round before's."},
    )
    sampling: dict | str | None = field(
        default=None,
        metadata={
            "help": "num_generations, temperature, top_p, top_k, max_completion_length, batch_size, dtype of the "
            "completions to learn from; the held-out problems are answered once, greedily, with the same lengths."
        },
    )
    sft: dict | str | None = field(default=None, metadata={"help": "Keys of the SFT recipe, for expert iteration."})
    grpo: dict | str | None = field(default=None, metadata={"help": "Keys of the GRPO recipe, for method grpo."})

    def __post_init__(self):
        for name in ("sampling", "sft", "grpo"):
            value = getattr(self, name)
            setattr(self, name, json.loads(value) if isinstance(value, str) else value or {})


def main(argv: list[str]) -> dict:
    """Run the stage.

    Args:
        argv: Such as `["--config", "improve.yaml", "--rounds", "2"]`.

    Returns:
        `{"best_round", "stopped", "rounds": [one result each]}`, also in `improve.json`.

    Raises:
        RecipeError: The run cannot work; raised before the model loads. Also if nothing is kept in the first round.
    """
    args, values = recipe.read((ImproveArguments,), argv, _check)
    stage.set_up()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RecipeError("`improve` is one process that runs the stages: start it without a launcher")
    return Improvement(args, values).run()


def _check(values: dict) -> None:
    for key in ("model_name_or_path", "dataset_name", "output_dir"):
        if not values[key]:
            raise RecipeError(f"`{key}` is missing: set it in the recipe or with --{key}")
    if values["method"] not in STAGES:
        raise RecipeError(f"`method: {values['method']}` must be {' or '.join(STAGES)}")
    for key in ("rounds", "patience", "keep_per_problem"):
        if values[key] < 1:
            raise RecipeError(f"`{key}: {values[key]}` must be at least 1")
    if not values["min_improvement"] >= 0:
        raise RecipeError(f"`min_improvement: {values['min_improvement']}` must not be negative")


class Improvement:
    """One run: its data, its settings, and the pieces of a round."""

    def __init__(self, args: ImproveArguments, values: dict):
        self.args, self.output_dir = args, Path(args.output_dir)
        self.stage, self.train, self.kinds = STAGES[args.method]
        self.settings = getattr(args, self.stage)
        self.how = recipe.nested(Sampling, args.sampling, "`sampling`")
        self.judging = Sampling(**asdict(self.how) | {"num_generations": 1, "temperature": 0.0})
        self._check_stage(values)
        model_args = ModelConfig(model_name_or_path=args.model_name_or_path)
        config = stage.load_config(model_args, args.trust_remote_code)
        self.tokenizer = stage.load_tokenizer(model_args, config, args.trust_remote_code)
        self.problems, self.held_out = (
            stage.load_dataset(args, split, "problem") for split in (args.dataset_train_split, args.dataset_test_split)
        )
        self.rewards = load_rewards(args.reward_funcs, self.problems.column_names)
        load_rewards(args.reward_funcs, self.held_out.column_names)
        for rows in (self.problems, self.held_out):
            check_prompts(rows, self.tokenizer, config, self.how.max_completion_length)
        shared = {json.dumps(p) for p in self.problems["prompt"]} & {json.dumps(p) for p in self.held_out["prompt"]}
        if shared:
            raise RecipeError(
                f"{len(shared)} prompts are in both `{args.dataset_train_split}` and `{args.dataset_test_split}`, "
                f"such as {min(shared)}: no round could be judged by them"
            )
        self.names = [reward.__name__ for reward in self.rewards]
        if str(args.resume_from_checkpoint).lower() == "false":
            for folder in self.output_dir.glob("round-*"):
                shutil.rmtree(folder)
            (self.output_dir / "settings.json").unlink(missing_ok=True)
        same_settings(self.output_dir / "settings.json", {k: v for k, v in values.items() if k not in MAY_CHANGE})
        recipe.save(values, self.output_dir / "recipe.yaml")

    def _check_stage(self, values: dict) -> None:
        """Refuse now what the stage of a round would refuse hours later."""
        other = next(name for name, _, _ in STAGES.values() if name != self.stage)
        if values[other]:
            raise RecipeError(f"`{other}` belongs to another method than `method: {self.args.method}`: remove it")
        if taken := sorted(OURS & self.settings.keys()):
            raise RecipeError(
                f"`{self.stage}.{taken[0]}` is each round's own: set it outside of `{self.stage}`, or not at all"
            )
        if self.settings.get("use_peft") and (self.stage == "grpo" or not self.args.restart):
            raise RecipeError(
                f"`{self.stage}.use_peft: true` would put adapters on adapters from the second round on: use "
                "`method: expert_iteration` with `restart: true`, or train all weights"
            )
        path = self._derive(1, self.args.model_name_or_path)
        *_, resolved = recipe.read(self.kinds, ["--config", str(path)], check_values)
        check_machine(resolved | {"model_name_or_path": self.args.model_name_or_path})

    def _folder(self, number: int) -> Path:
        folder = self.output_dir / f"round-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _derive(self, number: int, model: str) -> Path:
        """Write the recipe of a round's stage."""
        folder, args = self._folder(number), self.args
        keys = {"model_name_or_path": model, "output_dir": str(folder / "model"), "seed": args.seed + number}
        keys["trust_remote_code"] = args.trust_remote_code
        if self.stage == "sft":
            keys["dataset_name"] = str(folder / "kept.jsonl")
        else:
            keys |= {f.name: getattr(args, f.name) for f in fields(stage.DataArguments) if f.init}
            keys["reward_funcs"] = args.reward_funcs
        path = folder / f"{self.stage}.yaml"
        replace_text(path, yaml.safe_dump(keys | self.settings, allow_unicode=True, width=119))
        return path

    def run(self) -> dict:
        args = self.args
        results = [self._evaluate(0, args.model_name_or_path)]
        best = waited = 0
        stopped = f"{args.rounds} rounds are done"
        for number in range(1, args.rounds + 1):
            latest = self._model(number - 1)
            counts = self._once(number, "kept", lambda n=number, m=latest: self._keep(n, m))
            if counts and not counts["kept"]:
                if number == 1:
                    raise RecipeError(self._why_nothing())
                stopped = f"round {number} kept nothing"
                break
            start = args.model_name_or_path if args.restart and self.stage == "sft" else latest
            self._once(number, "trained", lambda n=number, s=start: self._train(n, s))
            for _, checkpoint in checkpoints(self._folder(number) / "model"):
                remove(checkpoint)  # several times the model's size, and the round is done
            shutil.rmtree(self._folder(number) / "model" / DRAFTS, ignore_errors=True)  # a removal that was cut off
            results.append(counts | self._evaluate(number, self._model(number)))
            gain, error = paired_gain(self._right(best), self._right(number))
            results[-1] |= {"gain": gain, "gain_standard_error": error}
            if gain > args.min_improvement * error:
                best, waited = number, 0
            else:
                waited += 1
            if waited == args.patience:
                stopped = f"round {number} did not improve" if waited == 1 else f"{waited} rounds did not improve"
                break
        found = {"best_round": best, "stopped": stopped, "rounds": results}
        stage.log.info("%s; the best is round %d\n%s", stopped, best, table(results, self.names))
        self._publish(found)
        return found

    def _model(self, number: int) -> str:
        return str(self._folder(number) / "model") if number else self.args.model_name_or_path

    def _once(self, number: int, piece: str, make: Callable[[], dict]) -> dict:
        """What a finished piece of a round left behind; made now if it is not there."""
        path = self._folder(number) / f"{piece}.json"
        if not path.exists():
            found = make()
            gc.collect()  # the model of the piece before
            replace_text(path, json.dumps(found, indent=1))
        return json.loads(path.read_text(encoding="utf-8"))

    def _keep(self, number: int, model: str) -> dict:
        if self.stage == "grpo":
            return {}  # samples and learns in one
        args, folder = self.args, self._folder(number)
        rows = self._sample(folder / "samples.jsonl", self.problems, model, self.how, number)
        kept, counts = select(
            rows, self.names, self.tokenizer, args.keep_threshold, args.keep_per_problem, args.keep_max_pass_rate
        )
        write_lines(folder / "kept.jsonl", [{key: row[key] for key in ("prompt", "completion")} for row in kept])
        stage.log.info("round %d: %s", number, ", ".join(f"{count} {name}" for name, count in counts.items()))
        return counts

    def _train(self, number: int, start: str) -> dict:
        return self.train(["--config", str(self._derive(number, start))])

    def _evaluate(self, number: int, model: str) -> dict:
        path = self._folder(number) / "evaluation.jsonl"

        def judge():
            rows = self._sample(path, self.held_out, model, self.judging, number)
            return summarise(rows, self.names, self.args.keep_threshold)

        result = {"round": number} | self._once(number, "evaluation", judge)
        low, high = result["interval"]
        stage.log.info("round %d: accuracy %.3f (%.3f-%.3f)", number, result["accuracy"], low, high)
        return result

    def _sample(self, path: Path, problems, model: str, how: Sampling, number: int) -> list[dict]:
        def load():
            return load_model(model, how.dtype, self.args.trust_remote_code)

        return sample(path, problems.to_list(), load, self.tokenizer, self.rewards, how, self.args.seed + number)

    def _right(self, number: int) -> list[bool]:
        rows = read_lines(self._folder(number) / "evaluation.jsonl")
        return [reaches(row[self.names[0]], self.args.keep_threshold) for row in rows]

    def _why_nothing(self) -> str:
        rows = read_lines(self._folder(1) / "samples.jsonl")
        causes = diagnose(
            [row[self.names[0]] for row in rows],
            [row["completion"] for row in rows],
            prompts=[row["prompt"] for row in rows],
            lengths=[row["tokens"] for row in rows],
            max_completion_length=self.how.max_completion_length,
        )
        shares = ", ".join(
            f"{name} {sum(reaches(row[name], self.args.keep_threshold) for row in rows)}" for name in self.names
        )
        return (
            f"round 1 kept none of {len(rows)} completions, so there is nothing to learn from (rewarded: {shares}): "
            f"{'; '.join(causes) or 'right ones are malformed, cut off or too easy'}. "
            f"They lie in {self._folder(1) / 'samples.jsonl'}"
        )

    def _publish(self, found: dict) -> None:
        """The best round's model in output_dir, with a card."""
        path = self.output_dir / "improve.json"
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(found)):
            return
        path.unlink(missing_ok=True)
        best = self._model(found["best_round"])
        model = AutoModelForCausalLM.from_pretrained(best, dtype="auto", trust_remote_code=self.args.trust_remote_code)
        draft = self.output_dir / DRAFTS / "model"
        shutil.rmtree(draft, ignore_errors=True)
        model.save_pretrained(draft)
        self.tokenizer.save_pretrained(draft)
        publish_model(draft, self.output_dir)
        data = ModelCardData(library_name="transformers", tags=["r1llama", "reasoning", "improve"])
        method = self.args.method.replace("_", " ")
        ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n# {self.output_dir.name}\n\n{self.args.model_name_or_path}, improved by "
            f"{method} with r1llama. These are the weights of round "
            f"{found['best_round']}; the run ended because {found['stopped']}.\n\n"
            f"{table(found['rounds'], self.names)}\n\n"
            f"Accuracy: on {found['rounds'][0]['completions']} held-out problems, greedy, with the 95 % Wilson "
            "interval. The best round was chosen by these problems.\n"
        ).save(self.output_dir / "README.md")
        replace_text(path, json.dumps(found, indent=1))


def paired_gain(before: list[bool], after: list[bool]) -> tuple[float, float]:
    """How much larger a share of the same problems is right, and the standard error of that difference."""
    differences = [new - old for old, new in zip(before, after, strict=True)]
    count = len(differences)
    mean = sum(differences) / count
    return mean, math.sqrt(sum((d - mean) ** 2 for d in differences) / max(count - 1, 1) / count)


def table(results: list[dict], names: list[str]) -> str:
    """The rounds in Markdown."""
    heads = ["round", "right of sampled", "kept", "accuracy (95 % interval)", *names[1:], "tokens per answer"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for result in results:
        low, high = result["interval"]
        sampled = f"{result['right']}/{result['sampled']}" if result.get("sampled") else ""
        cells = [
            result["round"],
            sampled,
            result.get("kept", ""),
            f"{result['accuracy']:.3f} ({low:.3f}-{high:.3f})",
            *(f"{result[name]:.3f}" for name in names[1:]),
            f"{result['tokens_per_answer']:.1f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    stage.run(main)
