"""GRPO learns with vLLM's rollouts what it learns with those of transformers: the quickstart, in 24 steps.

One SFT model, and from it three seeds with each kind of rollouts, by the same recipe and command but for `use_vllm`. A
run's figure is its mean reward over the last quarter of its steps. The bar is the spread over seeds: the distance of
the best from the worst run with transformers' rollouts.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.architecture.measure import Row

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart"
STEPS, SEEDS = 24, (0, 1, 2)


def run(stage: str, **keys) -> Path:
    """A stage by the quickstart's recipe, in a process of its own. Returns its output directory."""
    command = [sys.executable, "-m", f"r1llama.training.{stage}", "--config", str(QUICKSTART / f"{stage}.yaml")]
    command += [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}\n{ended.stderr[-3000:]}")
    return Path(keys["output_dir"])


def rows(quick: bool, device: str):
    steps, seeds = (3, (0,)) if quick else (STEPS, SEEDS)
    sys.path.insert(0, str(ROOT / "examples"))
    from quickstart import prepare

    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder)
        prepare(start, seed=0)
        keys = {"use_cpu": device == "cpu"}
        if quick:
            keys["max_steps"] = steps
        data = start / "demonstrations.jsonl"
        sft = run("sft", model_name_or_path=start / "start", dataset_name=data, output_dir=start / "sft", **keys)
        keys |= {"model_name_or_path": sft, "dataset_name": start / "problems.jsonl", "max_steps": steps}
        first, last, seconds, kl = {}, {}, {}, []
        for seed in seeds:
            for name, use_vllm in (("transformers", False), ("vLLM", True)):
                output = run("grpo", **keys, seed=seed, use_vllm=use_vllm, output_dir=start / f"{name}-{seed}")
                logs = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
                logs = [log for log in logs if "reward" in log]
                rewards, quarter = [log["reward"] for log in logs], -(-steps // 4)
                first.setdefault(name, []).append(statistics.mean(rewards[:quarter]))
                last.setdefault(name, []).append(statistics.mean(rewards[-quarter:]))
                results = json.loads((output / "all_results.json").read_text())
                seconds.setdefault(name, []).append(results["train_runtime"])
                kl += [log["sampling/kl"] for log in logs if use_vllm]
    spread = max(last["transformers"]) - min(last["transformers"])
    curves = {
        name: f"{name} {' '.join(f'{a:.3f} to {b:.3f},' for a, b in zip(first[name], last[name], strict=True))}"
        for name in last
    }
    means = {name: statistics.mean(values) for name, values in last.items()}
    yield Row(
        f"reward at the end of {steps} steps, {len(seeds)} seeds: distance of the means",
        "transformers",
        abs(means["vLLM"] - means["transformers"]),
        bar=spread,
        at_most=True,
        unit="reward (of 1.2)",
        note=f"mean of the first to that of the last quarter, each seed: {curves['transformers']} {curves['vLLM']} "
        f"largest KL(engine || trainer) of a step {max(kl):.1e}",
    )
    times = {name: statistics.median(values) for name, values in seconds.items()}
    yield Row(
        f"time of {steps} steps, without the start of the engine",
        "transformers",
        times["transformers"] / times["vLLM"],
        note=f"{times['transformers']:.0f} s against {times['vLLM']:.0f} s, median over seeds",
    )
