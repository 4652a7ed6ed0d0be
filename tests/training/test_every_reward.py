"""One real GRPO step of TRL's trainer in which every reward of the catalogue runs, on plain and on chat prompts."""

import json
import math

import pytest
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import get_callable_name, is_async_callable

from r1llama.rewards import AsyncCodeReward, accuracy_reward, get_reward, sandbox
from r1llama.rewards.catalogue import CATALOGUE
from r1llama.rewards.combinators import name_of

PARAMETERS = {
    "soft_overlong_punishment": {"max_completion_len": 8, "soft_punish_cache": 4},
    "language_consistency": {"language": "en"},
    "weighted": {"rewards": ["accuracy", "format"], "weights": [1.0, 0.5]},
    "gated": {"reward": "accuracy", "gate": "format"},
    "clipped": {"reward": "accuracy", "low": 0.0, "high": 0.5},
    "scheduled": {"reward": "accuracy", "schedule": [[0, 1.0], [10, 0.0]]},
    "dispatch": {"rewards": {"gsm8k": "accuracy", "code": "async_code"}},
    "difficulty_band": {"reward": "accuracy"},
}
ROW = {
    "solution": "42",
    "nums": [1, 2, 3],
    "target": 6,
    "language": "en",
    "entry": {"answer": "42", "metadata": {"source_dataset": "chain_sum"}},
    "verification_info": json.dumps({"test_cases": [{"input": "", "output": "42"}]}),
}


@pytest.fixture
def rewards(model_dir, tmp_path):
    try:
        sandbox.layers()
    except sandbox.SandboxUnavailableError as error:
        pytest.skip(str(error))
    config = LlamaConfig.from_pretrained(model_dir, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    parameters = PARAMETERS | {"model": {"model": str(tmp_path / "judge"), "tokenizer": str(model_dir)}}
    specs = [{"name": name, **parameters[name]} if name in parameters else name for name in CATALOGUE]
    return [get_reward(spec) for spec in specs]


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_every_reward_runs_in_a_step(chat, rewards, model_dir, tmp_path):
    asked = "What is 6 * 7?"
    prompt = [{"role": "user", "content": asked}] if chat else asked
    rows = [{"prompt": prompt, "source": source, **ROW} for source in ("gsm8k", "code")]
    config = GRPOConfig(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        max_steps=1,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        seed=0,
    )
    trainer = GRPOTrainer(str(model_dir), rewards, config, train_dataset=Dataset.from_list(rows))
    trainer.train()
    logged = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    judged = {name_of(reward): logged[f"rewards/{name_of(reward)}/mean"] for reward in rewards}
    # 42 is no letter, eight random bytes have no language, and a group without a pass has no rate.
    unjudged = {name for name, mean in judged.items() if mean is None or math.isnan(mean)}
    assert unjudged <= {"multiple_choice_reward", "language_consistency_reward", "banded_accuracy_reward"}
    assert math.isfinite(logged["reward"])
    assert math.isfinite(logged["loss"])


def test_trl_sees_names_and_which_rewards_wait():
    assert get_callable_name(accuracy_reward) == "accuracy_reward"
    assert not is_async_callable(accuracy_reward)
    assert is_async_callable(AsyncCodeReward(unsafe=True))
