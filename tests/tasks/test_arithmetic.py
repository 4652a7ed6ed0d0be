"""The arithmetic task: right answers, disjoint splits, the same draw for the same seed."""

import re
from collections import Counter

import pytest

from r1llama.rewards import accuracy_reward, format_reward
from r1llama.tasks.arithmetic import (
    MAX_STEPS,
    MAX_TOTAL,
    MIN_STEPS,
    make_demonstrations,
    make_problems,
    short_completion,
    split_of,
    worked_completion,
)

PROBLEMS = make_problems(3000, "train", seed=0)


def test_solutions_agree_with_python():
    for row in PROBLEMS:
        assert eval(row["prompt"].removesuffix("=")) == int(row["solution"])


def test_every_running_total_stays_small():
    for row in PROBLEMS[:500]:
        chain = row["prompt"].removesuffix("=")
        ends = [match.end() for match in re.finditer(r"\d", chain)]
        assert all(0 <= eval(chain[:end]) <= MAX_TOTAL for end in ends)


def test_splits_are_disjoint_whatever_the_seeds():
    train = {row["prompt"] for seed in range(3) for row in make_problems(3000, "train", seed)}
    test = {row["prompt"] for seed in range(3) for row in make_problems(1000, "test", seed)}
    assert not train & test
    assert {split_of(prompt) for prompt in test} == {"test"}


def test_problems_differ_and_depend_on_the_seed_alone():
    assert len({row["prompt"] for row in PROBLEMS}) == len(PROBLEMS)
    assert make_problems(3000, "train", seed=0) == PROBLEMS
    assert make_problems(3000, "train", seed=1) != PROBLEMS


def test_lengths_are_uniform_and_answers_spread():
    steps = Counter(len(re.findall(r"[+-]", row["prompt"])) for row in PROBLEMS)
    expected = len(PROBLEMS) / (MAX_STEPS - MIN_STEPS + 1)
    assert set(steps) == set(range(MIN_STEPS, MAX_STEPS + 1))
    assert all(abs(count - expected) < 0.1 * expected for count in steps.values())
    answers = Counter(row["solution"] for row in PROBLEMS)
    assert len(answers) == MAX_TOTAL + 1
    assert max(answers.values()) < 0.2 * len(PROBLEMS)  # the best constant answer is nearly always wrong


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="split='dev'"):
        make_problems(1, "dev", seed=0)
    with pytest.raises(ValueError, match="at most"):
        make_problems(10**6, "test", seed=0)


def test_completions_as_written():
    assert worked_completion("3+5-6=") == "<think>3+5=8-6=2</think><answer>2</answer>"
    assert short_completion("3+5-6=") == "<think>=2</think><answer>2</answer>"


@pytest.mark.parametrize("complete", [worked_completion, short_completion])
def test_completions_earn_both_rewards(complete):
    completions = [complete(row["prompt"]) for row in PROBLEMS[:200]]
    solutions = [row["solution"] for row in PROBLEMS[:200]]
    assert set(accuracy_reward(completions=completions, solution=solutions)) == {1.0}
    assert set(format_reward(completions=completions)) == {1.0}
    wrong = [str(int(solution) + 1) for solution in solutions]
    assert set(accuracy_reward(completions=completions, solution=wrong)) == {0.0}


def test_demonstrations_keep_the_share():
    rows = make_demonstrations(PROBLEMS, worked_share=0.3, seed=0)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in PROBLEMS]
    worked = [row for row in rows if row["completion"] == worked_completion(row["prompt"])]
    short = [row for row in rows if row["completion"] == short_completion(row["prompt"])]
    assert len(worked) + len(short) == len(rows)
    assert abs(len(worked) / len(rows) - 0.3) < 0.03
    assert make_demonstrations(PROBLEMS, worked_share=0.3, seed=0) == rows
