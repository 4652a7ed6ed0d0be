"""How far the engine's policy is from the trainer's over 20 steps of GRPO: tiny models of every architecture.

Real steps with a colocated engine, at a learning rate that moves every weight; routers are balanced on the way. The
figure is the worst step's `sampling/kl`, the difference that of the worst token. Beside it stands the KL of a model
with the first weights, which an engine would have that nothing reaches.

In fp32 the weights are wide, so that any error would show. They magnify rounding too, which is what bf16 is about
(with them the worst step of `grouped` is 2.7e-3 there), so in bf16 they are of ordinary size.
"""

import contextlib
import json
import tempfile
from pathlib import Path

import torch
import yaml
from tests.serving.models import EXPERTS, LATENT, MODELS, prompts, tiny_model
from tests.training.conftest import byte_tokenizer, write_jsonl
from transformers import AutoModelForCausalLM

from benchmarks.architecture.measure import Row
from r1llama.training import grpo

BAR = 1.5e-3  # nats a token
BALANCED = {"router_bias_update_rate": 0.05}
ORDINARY = {"initializer_range": 0.05}
MANY = EXPERTS | BALANCED | {"num_experts": 32, "num_experts_per_tok": 4}
FP32 = (
    "grouped",
    "grouped-tied",
    "grouped-yarn",
    "latent",
    "latent-yarn",
    "wide-latent",
    "experts",
    "experts-groups",
    "latent-experts-mtp",
    "wide-latent-experts",
    "linear",
    "linear-window",
    "hybrid",
    "hybrid-window-yarn",
    "everything",
)
BF16 = {
    "grouped": ({}, True),
    "latent": (LATENT, True),
    "latent, 4 of 32 experts": (LATENT | MANY, True),
    "latent, 4 of 32 experts, routing not replayed": (LATENT | MANY, False),
    "hybrid": (MODELS["hybrid"], True),
}


def run(folder: Path, switches: dict, steps: int, device: str, **changes):
    """The logs of GRPO on a model that is made here, and the KL of its first weights from its last ones."""
    tokenizer = byte_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **switches)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": "x" * a + f"{a}+{b}=", "solution": str(a + b)} for a in range(5) for b in range(4)]
    recipe = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(write_jsonl(folder / "problems.jsonl", rows)),
        "output_dir": str(folder / "out"),
        "reward_funcs": ["tests.training.rewards.letter_share"],
        "max_steps": steps,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 32,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_vllm": True,
        "use_cpu": device == "cpu",
        "bf16": False,
        "disable_tqdm": True,
    } | changes
    (folder / "grpo.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    said = tempfile.TemporaryFile("w")  # noqa: SIM115  the log, no part of the table; its loggers keep it
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        grpo.main(["--config", str(folder / "grpo.yaml")])
    logs = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    trained = AutoModelForCausalLM.from_pretrained(folder / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = [torch.cat([one(torch.tensor([ids])).logits[0] for ids in prompts()]) for one in (model, trained)]
    before, after = (one.log_softmax(-1) for one in logits)
    return [log for log in logs if "loss" in log], (before.exp() * (before - after)).sum(-1).mean().item()


def rows(quick: bool, device: str):
    runs = [(f"{name}, fp32", MODELS[name] | BALANCED, {}) for name in FP32]
    runs += [
        (f"{name}, bf16", switches | ORDINARY, {"bf16": True, "replay_routing": replays})
        for name, (switches, replays) in BF16.items()
    ]
    for name, switches, changes in runs[-2:] if quick else runs:
        with tempfile.TemporaryDirectory() as folder:
            logs, stale = run(Path(folder), switches, 2 if quick else 20, device, **changes)
        kl = [log["sampling/kl"] for log in logs]
        yield Row(
            f"trainer-engine KL, {name}, the worst of {len(logs)} steps",
            "the trainer",
            max(kl),
            None if changes.get("replay_routing") is False else BAR,
            at_most=True,
            unit="nats a token",
            note=f"mean {sum(kl) / len(kl):.1e}; with the first weights {stale:.2g}",
            error=max(log["sampling/sampling_logp_difference/max"] for log in logs),
        )
