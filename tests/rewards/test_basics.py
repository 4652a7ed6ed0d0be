"""The contract with TRL: signature, types, names, pickling, and what is refused before training starts."""

import pickle
import subprocess
import sys

import pytest

from r1llama.rewards import accuracy_reward, extract_answer, format_reward, get_reward, required_columns


@pytest.mark.parametrize("gold, answer", [("1,080", "1080"), ("-5", "-5"), ("18", "$18.00"), ("bla\n#### 72", "72")])
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


def test_import_is_light():
    heavy = "import sys, r1llama.rewards; sys.exit(any(m in sys.modules for m in ('torch', 'sympy', 'trl', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0
