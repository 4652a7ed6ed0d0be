"""vLLM beside transformers: `python -m benchmarks.serving [--quick] [--only rollout] [--device cuda] [--json FILE]`.

Both run in this process, on the same weights, prompts and threads; each section checks that both write the same before
it times them. Needs the environment of `make test-vllm`. `--quick` takes smaller sizes; its figures only show that
everything runs, and are not judged.
"""

from benchmarks.architecture.__main__ import report

SECTIONS = ("equality", "rollout", "cache", "kl", "learning", "faults")

if __name__ == "__main__":
    report("benchmarks.serving", SECTIONS, __doc__.splitlines()[0])
