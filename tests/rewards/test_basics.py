"""The contract with TRL: signature, types, names, pickling, and what is refused before training starts."""

import pathlib
import pickle
import subprocess
import sys

import pytest

import r1llama.rewards
from r1llama.rewards import (
    accuracy_reward,
    extract_answer,
    format_reward,
    get_reward,
    required_columns,
)


@pytest.mark.parametrize(
    ("gold", "answer"), [("1,080", "1080"), ("-5", "-5"), ("18", "$18.00"), ("bla\n#### 72", "72")]
)
def test_gsm8k_golds(gold, answer):
    assert accuracy_reward([f"The answer is {answer}."], solution=[gold]) == [1.0]
    assert accuracy_reward(["The answer is 7."], solution=[gold]) == [0.0]


def test_strings_and_messages_are_graded_alike():
    text = "<think>6 * 7</think><answer>42</answer>"
    for completion in (text, [{"role": "assistant", "content": text}]):
        assert accuracy_reward([completion], ["42"]) == [1.0]
        assert format_reward([completion]) == [1.0]


def test_no_gold_cannot_be_judged():
    assert accuracy_reward(["42", "42"], [None, " "]) == [None, None]


def test_prefilled_think():
    completion = "6 * 7</think><answer>42</answer>"
    assert format_reward([completion], prompts=["What is 6 * 7? <think>\n"]) == [1.0]
    assert format_reward([completion], prompts=["What is 6 * 7?"]) == [0.0]
    assert extract_answer("it is \\boxed{42}", prefilled=True).reason == "unfinished_think"


def test_names_and_columns():
    assert get_reward("accuracy").__name__ == "accuracy_reward"
    assert get_reward("accuracy_reward")(["42"], ["42"]) == [1.0]
    assert get_reward("r1llama.rewards.accuracy_reward") is accuracy_reward
    assert required_columns(get_reward("accuracy")) == {"solution"}
    assert required_columns(format_reward) == set()
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        get_reward("acuracy")
    with pytest.raises(ValueError, match="cannot import"):
        get_reward("no.such.reward")


def test_pickling_changes_nothing():
    again = pickle.loads(pickle.dumps(accuracy_reward))
    assert again(["#### 42"], ["42"]) == [1.0]
    assert again.__name__ == "accuracy_reward"


def test_the_room_alone_is_light():
    """Loaded as a package of its own, as the worker does, so that only this folder's imports count."""
    folder = pathlib.Path(r1llama.rewards.__file__).parent
    code = f"""
import importlib.util, sys
path = r"{folder}"
spec = importlib.util.spec_from_file_location("room", path + "/__init__.py", submodule_search_locations=[path])
module = importlib.util.module_from_spec(spec)
sys.modules["room"] = module
spec.loader.exec_module(module)
sys.exit(any(m in sys.modules for m in ("torch", "transformers", "trl", "sympy", "math_verify", "numpy", "r1llama")))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_mapping_of_a_known_class_is_named_by_its_parameters():
    assert get_reward({"name": "accuracy", "mode": "strict"}).__name__ == "strict_accuracy_reward"
    assert get_reward({"name": "format", "tags": ["reasoning", "answer"]}).__name__ == "reasoning_format_reward"
