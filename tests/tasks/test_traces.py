"""Rows with reasoning and answer apart."""

import pytest

from r1llama.rewards import format_reward
from r1llama.tasks.traces import demonstration


@pytest.mark.parametrize(
    ("question", "reasoning", "answer"),
    [
        ("question", "reasoning", "answer"),
        ("problem", "reasoning_content", "content"),
        ("prompt", "thinking", "output"),
    ],
)
def test_columns_become_a_trace(question, reasoning, answer):
    row = {question: "2+3?", reasoning: "2 and 3\nmake 5.\n", answer: "5", "source": "r1"}
    made = demonstration(row)
    assert made["prompt"] == [{"role": "user", "content": "2+3?"}]
    text = "<think>\n2 and 3\nmake 5.\n</think>\n<answer>\n5\n</answer>"
    assert made["completion"] == [{"role": "assistant", "content": text}]
    assert format_reward([made["completion"]]) == [1.0]


def test_tags_and_turns_that_are_there_stay():
    turns = [{"role": "user", "content": "2+3?"}]
    row = {"prompt": turns, "reasoning": "<think>5</think>", "answer": "<answer>5</answer>"}
    made = demonstration(row, system_prompt="Add.")
    assert made["prompt"] == [{"role": "system", "content": "Add."}, *turns]
    assert made["completion"][0]["content"] == "<think>5</think>\n<answer>5</answer>"


def test_what_is_missing_is_named():
    with pytest.raises(KeyError, match="reasoning or reasoning_content or thinking"):
        demonstration({"question": "?", "answer": "5"})
    with pytest.raises(ValueError, match="`reasoning` is empty"):
        demonstration({"question": "?", "reasoning": "", "answer": "5"})
