"""How far the engine that writes the rollouts is from the trainer, measured on rollouts whose distance is known."""

import math

import pytest
import torch
from datasets import load_dataset
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from r1llama.training.alarms import Alarms, History, find_alarms
from r1llama.training.grpo_trainer import R1GRPOTrainer
from r1llama.training.mismatch import token_kl

from .rewards import letter_share

LENGTHS = (1, 5, 2, 8)


def test_its_mean_is_the_kl_of_the_engine_from_the_trainer():
    torch.manual_seed(0)
    engine, trainer = torch.randn(2, 50).double().log_softmax(-1)
    expected = (engine.exp() * (engine - trainer)).sum()
    assert_close((engine.exp() * token_kl(trainer - engine)).sum(), expected)


def test_it_resolves_what_rounding_leaves():
    assert_close(
        token_kl(torch.tensor([1e-7, -1e-7])), torch.full((2,), 5e-15, dtype=torch.float64), rtol=1e-2, atol=0
    )


@torch.no_grad()
def logps(model, prompt, completion):
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]


def run(model_dir, problems, folder, error, **arguments):
    """The logs of steps whose engine is off by `error` nats at the first token of each completion of another length.

    The lengths differ, so that a mean over completions is not one over tokens.
    """

    def rollout(prompts, trainer):
        generator = torch.Generator().manual_seed(trainer.state.global_step)
        prompt_ids = trainer.processing_class(prompts)["input_ids"]
        completion_ids = [
            torch.randint(0, 250, (LENGTHS[i % 4],), generator=generator).tolist() for i in range(len(prompts))
        ]
        sampled = [logps(trainer.model, *pair) for pair in zip(prompt_ids, completion_ids, strict=True)]
        for one in sampled:
            one[0] -= error
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": [x.tolist() for x in sampled]}

    arguments = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "learning_rate": 1e-2,
        "max_completion_length": 8,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
    } | arguments
    trainer = R1GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        reward_funcs=letter_share,
        args=GRPOConfig(**arguments),
        train_dataset=load_dataset("json", data_files=str(problems), split="train"),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        rollout_func=rollout,
    )
    trainer.add_callback(Alarms(trainer))
    trainer.train()
    return [log for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "top_p": 0.9},
        {
            "num_iterations": 2,
            "max_steps": 12,
        },  # the second update has moved the weights: only the first tells of the engine
    ],
    ids=["one update", "accumulation", "two updates"],
)
def test_the_distance_is_that_of_the_weights_that_generated(model_dir, problems, tmp_path, caplog, arguments):
    error = 0.1
    logs = run(model_dir, problems, tmp_path, error, **arguments)
    share = 4 / sum(LENGTHS)
    measured = [log for log in logs if "sampling/kl" in log]
    assert len(measured) == 6
    for log in measured:
        assert log["sampling/kl"] == pytest.approx(share * (math.expm1(error) - error), rel=1e-2)
        assert log["sampling/sampling_logp_difference/mean"] == pytest.approx(share * error, rel=1e-2)
        assert log["sampling/sampling_logp_difference/max"] == pytest.approx(error, rel=1e-2)
    told = [record.message for record in caplog.records if record.message.startswith("mismatch: ")]
    assert len(told) == 1
    assert "is 0.00129 (steps 1-" in told[0]
    assert ("`top_p: 0.9` changes the probabilities of the engine" in told[0]) == ("top_p" in arguments)
    assert told[0].endswith("another dtype, hold stale weights, or read the config otherwise")


def test_an_engine_that_agrees_raises_nothing(model_dir, problems, tmp_path, caplog):
    logs = run(model_dir, problems, tmp_path, 0.0, top_p=0.9)
    assert max(log["sampling/kl"] for log in logs) < 1e-10
    assert "mismatch" not in caplog.text


@pytest.mark.parametrize(("kl", "is_fp32", "is_told"), [(6e-4, False, False), (6e-4, True, True), (3e-2, False, True)])
def test_rounding_excuses_bf16_only(kl, is_fp32, is_told):
    logs = [{"step": step, "reward": 1.0, "sampling/kl": kl} for step in range(1, 7)]
    assert ("mismatch" in find_alarms(History(logs, 8, "accuracy", is_fp32))) == is_told
