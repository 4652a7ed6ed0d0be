"""The stages beside plain TRL: `python -m benchmarks.training [--quick] [--only sft] [--device cuda] [--json FILE]`.

Each section checks that both sides compute the same loss before it times them. `--quick` takes a smaller model and
less data, in about a minute; its figures only show that everything runs, and are not judged.
"""

from benchmarks.architecture.__main__ import report

SECTIONS = ("sft", "distill")

if __name__ == "__main__":
    report("benchmarks.training", SECTIONS, __doc__.splitlines()[0])
