"""The `r1llama` command: parses and hands over, nothing more.

    r1llama pretrain --config recipe.yaml [--smoke] [--key value ...]
    r1llama sft --config recipe.yaml [--smoke] [--key value ...]
    r1llama distill --config recipe.yaml [--smoke] [--key value ...]
    r1llama grpo --config recipe.yaml [--smoke] [--key value ...]
    r1llama pass-rate --config grpo.yaml --output_file rated.jsonl
    r1llama serve MODEL [any flag of `vllm serve`]
    r1llama evaluate ...
    r1llama data inspect FILE | --config recipe.yaml
    r1llama inspect MODEL
    r1llama rewards ...

Stages such as `sft` take the same words as `accelerate launch -m r1llama.training.sft`, which is how to run them on
several processes.
"""

import argparse
import importlib
import sys

# command -> (module whose `main(argv)` gets the rest of the line, what it does)
COMMANDS = {
    "tokenizer": ("r1llama.training.tokenizer", "train a tokenizer from a recipe"),
    "pretrain": ("r1llama.training.pretrain", "pretraining from a recipe, from scratch or continued"),
    "sft": ("r1llama.training.sft", "supervised fine-tuning from a recipe"),
    "distill": ("r1llama.training.distill", "learning from the traces, or the probabilities, of a teacher"),
    "grpo": ("r1llama.training.grpo", "reinforcement learning from a recipe"),
    "improve": ("r1llama.training.improve", "rounds of sampling and learning, judged on held-out problems"),
    "verifier": ("r1llama.training.verifier", "train a judge of completions on graded ones"),
    "sample": ("r1llama.training.sampling", "complete problems and grade the completions"),
    "pass-rate": ("r1llama.training.pass_rate", "how often a model solves each problem, for GRPO's curriculum"),
    "serve": ("r1llama.serving.server", "vLLM's OpenAI server on a model, or for GRPO's rollouts"),
    "evaluate": ("r1llama.evaluation.command", "score a model on problems"),
    "data": ("r1llama.training.data_command", "show what a trainer sees of the data: text, mask and lengths"),
    "inspect": ("r1llama.model.sizes", "count a model's parameters and what a token adds to its cache"),
    "rewards": ("r1llama.rewards.command", "list, try and attack reward functions"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command, whose module is imported only now.

    Args:
        argv: The command line without the program's name; None for `sys.argv`.

    Returns:
        The exit status: what the command returned if that is a number, 2 after a refusal, else 0.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="r1llama", description="Teach a Llama to reason.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (_, purpose) in COMMANDS.items():
        subparsers.add_parser(name, help=purpose, add_help=False)  # the module parses the rest, `--help` included
    command = parser.parse_args(argv[:1]).command
    try:
        status = importlib.import_module(COMMANDS[command][0]).main(argv[1:])
    except (ValueError, RuntimeError) as error:
        if not type(error).__module__.startswith("r1llama."):
            raise
        # A refusal (RecipeError, DataError) or a run that ended early (RunStopped): written for the user.
        print(f"r1llama: {error}", file=sys.stderr)
        return getattr(error, "status", 2)
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
