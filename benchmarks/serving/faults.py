"""What a GRPO run with `vllm_mode: server` survives, and what is refused before anything is lost.

- killed: SIGKILL of the server at a random moment of a run; stopped: SIGSTOP. The run must end with one message, exit
  status 1 and a checkpoint of its last finished step. Then the server is back, and the same command must finish all
  steps, in fp32 with the log-probabilities of the trainer: with the newest weights, that is.
- refused: servers that cannot start must say so in one line and exit with status 2, before the engine starts.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from tests.serving.models import BASE, EXPERTS, LATENT
from tests.serving.server import Server, free_port
from tests.training.conftest import byte_tokenizer

from benchmarks.architecture.measure import Row
from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.training.checkpoint import checkpoints

STEPS = 6
DIFFERENCE = "sampling/sampling_logp_difference/max"
ENDS = {"killed": 30, "stopped": 90}  # seconds within which the run has ended


def write_inputs(folder: Path, port: int) -> None:
    """A model with latent attention and experts, problems, and the recipe."""
    tokenizer = byte_tokenizer()
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    R1LlamaForCausalLM(R1LlamaConfig(**BASE | LATENT | EXPERTS | ids)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": f"{a}+{b}="} for a in range(8) for b in range(8)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "problems.jsonl"),
        "reward_funcs": ["tests.training.rewards.letter_share"],
        "max_steps": STEPS,
        "save_steps": 100,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 200,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": f"http://127.0.0.1:{port}",
        "vllm_server_timeout": 10,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def train(folder: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "r1llama.cli", "grpo", "--config", str(folder / "recipe.yaml")]
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen([*command, "--output_dir", str(out)], stdout=log, stderr=log)


def logs(out: Path) -> list[dict]:
    path = out / "metrics.jsonl"
    return (
        [log for log in map(json.loads, path.read_text().splitlines()) if DIFFERENCE in log] if path.exists() else []
    )


def lose(server: Server, folder: Path, out: Path, how: str, chance: random.Random) -> tuple[bool, float]:
    """Take the server from a run; whether the run ended as it must, and after how many seconds."""
    run, moment = train(folder, out), None
    steps, delay = chance.randrange(1, STEPS - 2), chance.uniform(0, 2)
    while run.poll() is None and (moment is None or time.monotonic() < moment):
        if moment is None and len(logs(out)) >= steps:
            moment = time.monotonic() + delay
        time.sleep(0.02)
    server.signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    start = time.monotonic()
    status, seconds = run.wait(), time.monotonic() - start
    said = out.with_suffix(".log").read_text()
    saved = next((step for step, _ in checkpoints(out)), 0)
    well = status == 1 and saved == len(logs(out)) and server.url in said and "Traceback" not in said
    if not well:
        print(f"  {how}: status {status}, checkpoint {saved} after {len(logs(out))} steps: {said[-1500:]}", flush=True)
    return well, seconds


def refusals(folder: Path) -> dict[str, tuple[list[str], dict[str, str], str]]:
    """Name -> flags, environment, and what must be said."""
    return {
        "no config.json": ([str(folder)], {}, "holds no config.json"),
        "port in use": ([str(folder / "model"), "--port"], {}, "is in use"),
        "plugin kept out": ([str(folder / "model")], {"VLLM_PLUGINS": "other"}, "keeps r1llama's plugin out"),
        "too little memory": ([str(folder / "model"), "--kv-cache-memory-bytes", str(2**46)], {}, "too little memory"),
    }


def rows(quick: bool, device: str):
    chance = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="r1llama-faults-") as name:
        folder, port = Path(name), free_port()
        write_inputs(folder, port)
        trials = ["killed", "stopped"] if quick else ["killed"] * 3 + ["stopped"]
        found: dict[str, list[tuple[bool, float, bool, float]]] = {}
        server = Server(folder / "model", folder / "server.txt", "--rollouts", port=port).wait()
        try:
            for index, how in enumerate(trials):
                out = folder / f"run-{index}"
                well, seconds = lose(server, folder, out, how, chance)
                if how == "killed":
                    server.stop()
                    server = Server(folder / "model", folder / "server.txt", "--rollouts", port=port).wait()
                else:
                    server.signal(signal.SIGCONT)
                again = train(folder, out).wait()
                difference = max(log[DIFFERENCE] for log in logs(out))
                finished = again == 0 and len(logs(out)) == STEPS and difference < 1e-3
                found.setdefault(how, []).append((well, seconds, finished, difference))
        finally:
            server.stop()
        for how, results in found.items():
            ended, times, finished, differences = zip(*results, strict=True)
            yield Row(
                f"server {how}, {len(results)} times: seconds until the run has ended",
                "no peer",
                max(times),
                ENDS[how],
                at_most=True,
                unit="s",
                note=f"{sum(ended)} ended with one message and a checkpoint of the last step, {sum(finished)} went on "
                f"to all {STEPS} steps with the newest weights",
                error=max(differences),
            )
        with socket.socket() as other:
            other.bind(("0.0.0.0", 0))
            other.listen()
            for what, (flags, variables, said) in refusals(folder).items():
                if flags[-1] == "--port":
                    flags = [*flags, str(other.getsockname()[1])]
                start = time.monotonic()
                run = subprocess.run(
                    [sys.executable, "-m", "r1llama.cli", "serve", *flags],
                    env=os.environ | variables,
                    capture_output=True,
                    text=True,
                )
                lines = [line for line in run.stderr.splitlines() if line.startswith("r1llama: ")]
                is_right = (
                    run.returncode == 2 and len(lines) == 1 and said in lines[0] and "Traceback" not in run.stderr
                )
                yield Row(
                    f"refused in one line: {what}",
                    "no peer",
                    float(is_right),
                    1,
                    unit="",
                    note=f"{time.monotonic() - start:.0f} s; {lines[0] if lines else run.stderr[-300:]}",
                )
