"""Raw GSM8K rows as prompts, solutions and demonstrations."""

import pytest

from r1llama.rewards import accuracy_reward, format_reward
from r1llama.tasks import gsm8k

ROW = {"question": "How many?", "answer": "2*540 = <<2*540=1080>>1,080 a year.\nSo 1080.\n#### 1,080"}


def test_problem():
    row = gsm8k.problem(ROW)
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert row["prompt"][1]["content"] == "How many?"
    assert row["solution"] == "1080"


def test_system_prompt_is_replaced_or_left_out():
    assert gsm8k.problem(ROW, "Think.")["prompt"][0] == {"role": "system", "content": "Think."}
    assert [message["role"] for message in gsm8k.problem(ROW, "")["prompt"]] == ["user"]


def test_demonstration_earns_every_reward():
    row = gsm8k.demonstration(ROW)
    completion = row["completion"]
    assert "<<" not in completion[0]["content"]
    assert completion[0]["content"].startswith("<think>\n2*540 = 1,080 a year.\n")
    assert row["prompt"] == gsm8k.problem(ROW)["prompt"]
    assert format_reward(completions=[completion]) == [1.0]
    assert accuracy_reward(completions=[completion], solution=[gsm8k.problem(ROW)["solution"]]) == [1.0]


@pytest.mark.parametrize(("answer", "solution"), [("#### -3", "-3"), ("a #### b\n#### 7", "7"), ("####  12 ", "12")])
def test_final_number(answer, solution):
    assert gsm8k.problem({"question": "?", "answer": answer})["solution"] == solution


def test_an_answer_without_its_mark_is_refused():
    with pytest.raises(ValueError, match="####"):
        gsm8k.problem({"question": "?", "answer": "seven"})
