"""From random weights to a model that reasons, on a laptop CPU: warm-start SFT, GRPO, evaluation.

    python examples/quickstart.py --seed 0

The task: chains such as `3+5-6+7-9=` (r1llama.tasks.arithmetic). The demonstrations are all right. First come worked
ones, which write the running totals down; then mostly short ones, which jump to the answer
(`<think>=0</think><answer>0</answer>`), and a quarter worked ones. So after SFT the model can work a chain through,
but its habit is to jump to the answer, and it mostly misses. GRPO is told only which answers are right and well
formed; it has to find out by itself that working a chain through pays.

Everything lands in runs/quickstart/seed-N: data, model config and tokenizer, the SFT model, the final model, a plot.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1llama import R1LlamaConfig
from r1llama.data.tokenizer import train_tokenizer
from r1llama.evaluation.accuracy import evaluate
from r1llama.tasks.arithmetic import make_demonstrations, make_problems
from r1llama.training import grpo, sft

RECIPES = Path(__file__).parent.parent / "recipes" / "quickstart"
WORKED_DEMONSTRATIONS, MIXED_DEMONSTRATIONS, PROBLEMS, TEST_PROBLEMS = 19_200, 1_920, 2_400, 500
WORKED_SHARE = 0.25  # of the mixed demonstrations
MAX_NEW_TOKENS = 48


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def prepare(folder: Path, seed: int) -> list[dict]:
    """Write the data of both stages, the tokenizer and the model's config; return the test problems."""
    problems = make_problems(WORKED_DEMONSTRATIONS + MIXED_DEMONSTRATIONS + PROBLEMS, "train", seed)
    demonstrations = make_demonstrations(problems[:WORKED_DEMONSTRATIONS], 1.0, seed)
    demonstrations += make_demonstrations(problems[WORKED_DEMONSTRATIONS:-PROBLEMS], WORKED_SHARE, seed)
    test = make_problems(TEST_PROBLEMS, "test", seed)
    assert not {row["prompt"] for row in test} & {row["prompt"] for row in problems}
    write_jsonl(folder / "demonstrations.jsonl", demonstrations)
    write_jsonl(folder / "problems.jsonl", problems[-PROBLEMS:])
    write_jsonl(folder / "test.jsonl", test)

    tokenizer = train_tokenizer([])  # one token a byte: the task has no words worth a merge
    tokenizer.save_pretrained(folder / "start")
    R1LlamaConfig(
        **json.loads((RECIPES / "model.json").read_text(encoding="utf-8")),
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder / "start")
    return test


def run_stage(stage: str, model: Path, data: Path, output: Path, seed: int) -> None:
    argv = ["--config", str(RECIPES / f"{stage}.yaml"), "--model_name_or_path", str(model)]
    argv += ["--dataset_name", str(data), "--output_dir", str(output), "--seed", str(seed)]
    print(f"\n$ r1llama {stage} {' '.join(argv)}", flush=True)
    start = time.perf_counter()
    {"sft": sft, "grpo": grpo}[stage].main(argv)
    print(f"{stage}: {time.perf_counter() - start:.0f} s", flush=True)


def score(folder: Path, test: list[dict], seed: int) -> dict:
    """Evaluate a saved model on the test problems: greedy, and sampled at temperature 1 as GRPO does."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(seed)
    return {
        "parameters": model.num_parameters(),
        "greedy": evaluate(model, tokenizer, test, MAX_NEW_TOKENS, batch_size=250),
        "sampled": evaluate(model, tokenizer, test, MAX_NEW_TOKENS, temperature=1.0, batch_size=250),
    }


def plot(metrics: Path, path: Path) -> None:
    """The learning curve of GRPO: accuracy of the rollouts, and how long they are."""
    logs = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    logs = [log for log in logs if "rewards/accuracy_reward/mean" in log]
    steps = [log["step"] for log in logs]
    figure, left = plt.subplots(figsize=(7, 4), layout="constrained")
    right = left.twinx()
    left.plot(steps, [log["rewards/accuracy_reward/mean"] for log in logs], color="tab:blue")
    left.set(xlabel="GRPO step", ylim=(0, 1))
    left.set_ylabel("accuracy of the rollouts", color="tab:blue")
    right.plot(steps, [log["completions/mean_length"] for log in logs], color="tab:orange", linestyle="--")
    right.set_ylim(bottom=0)
    right.set_ylabel("tokens per answer", color="tab:orange")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    torch.set_num_threads(1)  # operations this small gain little from a second thread, and lose much on a busy machine
    start = time.perf_counter()
    folder = Path("runs/quickstart") / f"seed-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    test = prepare(folder, seed)
    run_stage("sft", folder / "start", folder / "demonstrations.jsonl", folder / "sft", seed)
    run_stage("grpo", folder / "sft", folder / "problems.jsonl", folder / "grpo", seed)
    scores = {"SFT": score(folder / "sft", test, seed), "after GRPO": score(folder / "grpo", test, seed)}
    plot(folder / "grpo" / "metrics.jsonl", folder / "learning_curve.png")

    print(f"\n{TEST_PROBLEMS} held-out problems, {scores['SFT']['parameters']:,} parameters, seed {seed}, ", end="")
    print(f"{time.perf_counter() - start:.0f} s\n")
    print("| model | decoding | accuracy (95 % interval) | tokens per answer | format rate |\n|---|---|---|---|---|")
    results = []
    for name, by_decoding in scores.items():
        for decoding in ("greedy", "sampled"):
            result = vars(by_decoding[decoding])
            low, high = result["interval"]
            print(
                f"| {name} | {decoding} | {result['accuracy']:.3f} ({low:.3f}-{high:.3f}) "
                f"| {result['tokens_per_answer']:.1f} | {result['format_rate']:.3f} |"
            )
            results.append({"model": name, "decoding": decoding} | result)
    seconds = round(time.perf_counter() - start)
    (folder / "results.json").write_text(json.dumps({"seed": seed, "seconds": seconds, "results": results}, indent=1))
    print(f"\nmodel: {folder / 'grpo'}\nlearning curve: {folder / 'learning_curve.png'}")


if __name__ == "__main__":
    main()
