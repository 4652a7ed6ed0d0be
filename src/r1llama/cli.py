"""The `r1llama` command: parses and hands over, nothing more.

    r1llama sft --config recipe.yaml [--key value ...]
    r1llama grpo --config recipe.yaml [--key value ...]
    r1llama evaluate ...
    r1llama rewards ...

`sft` and `grpo` take the same words as `accelerate launch -m r1llama.training.sft` and `... .grpo`, which is how to
run them on several processes.
"""

import argparse
import runpy
import sys

# command -> (module that is run with the rest of the line, what it does)
COMMANDS = {
    "sft": ("r1llama.training.sft", "supervised fine-tuning from a recipe"),
    "grpo": ("r1llama.training.grpo", "reinforcement learning from a recipe"),
    "evaluate": ("r1llama.evaluation", "score a model on a task"),
    "rewards": ("r1llama.rewards.command", "list, try and attack reward functions"),
}


def main(argv: list[str] | None = None) -> None:
    """Run one command as `python -m` runs its module, which is imported only now.

    Args:
        argv: The command line without the program's name; None for `sys.argv`.

    Raises:
        SystemExit: With the command's exit status; 2 for a command line or a recipe that cannot work.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="r1llama", description="Teach a Llama to reason.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (_, purpose) in COMMANDS.items():
        subparsers.add_parser(name, help=purpose, add_help=False)  # the module parses the rest, `--help` included
    command = parser.parse_args(argv[:1]).command
    sys.argv = [f"r1llama {command}", *argv[1:]]
    runpy.run_module(COMMANDS[command][0], run_name="__main__")


if __name__ == "__main__":
    main()
