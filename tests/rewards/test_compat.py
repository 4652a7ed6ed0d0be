"""Where a reward has the name of another project's, well-formed input gives the same value."""

import math

import pytest

from r1llama.rewards import get_reward
from r1llama.rewards.catalogue import CATALOGUE
from r1llama.rewards.compat import DIFFERENCES
from r1llama.rewards.length import (
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
)

trl = pytest.importorskip("trl.rewards")

BOXED = [
    [{"role": "assistant", "content": rf"Thus \boxed{{{value}}}"}]
    for value in (r"\frac{1}{3}", r"\frac{1}{2}", "7", "x+1")
]
SOLUTION = [r"\frac{1}{3}", r"\frac{1}{3}", "7", "$1+x$"]
IDS = [[1, 2, 3] * 7, list(range(40)), [5] * 90, [5] * 101]


def test_accuracy_as_in_trl():
    assert get_reward("accuracy")(BOXED, SOLUTION) == trl.accuracy_reward(BOXED, SOLUTION)


def test_think_format_as_in_trl():
    good = [
        [{"role": "assistant", "content": "<think>\nreasons\n</think>"}],
        [{"role": "assistant", "content": "reasons"}],
    ]
    assert get_reward("think_format")(good) == trl.think_format_reward(good)


def test_cosine_as_in_trl():
    ours = get_cosine_scaled_reward(max_len=100)(BOXED, SOLUTION, completion_ids=IDS)
    assert ours == pytest.approx(trl.get_cosine_scaled_reward(max_len=100)(BOXED, SOLUTION, IDS))


def test_repetition_as_in_trl():
    for n in (1, 2, 3, 50):
        ours = get_repetition_penalty_reward(n, -0.7)(completion_ids=IDS)
        assert ours == pytest.approx(trl.get_repetition_penalty_reward(n, -0.7)(completion_ids=IDS))
    with pytest.raises(ValueError, match="positive"):
        get_repetition_penalty_reward(3, 0.1)


def test_soft_overlong_as_in_trl():
    theirs = trl.get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    assert get_soft_overlong_punishment(100, 20)(completion_ids=IDS) == pytest.approx(theirs(completion_ids=IDS))
    assert get_soft_overlong_punishment(100, 0)(completion_ids=IDS) == pytest.approx([0.0, 0.0, 0.0, -1.0])


def test_open_r1_values():
    block = "<think>\nStep 1: add two\nStep 2: add three\n</think>\n<answer>\n42\n</answer>"
    assert get_reward("format")([block]) == [1.0]
    assert get_reward("tag_count")([block, "<think>\na\n</think>\n"]) == [1.0, 0.5]
    assert get_reward("reasoning_steps")([block]) == pytest.approx([2 / 3])
    # Kimi k1.5: the shortest right +0.5, the longest right -0.5, wrong ones at most 0
    values = get_reward("len")(["42", "42", "41", "42"], ["42"] * 4, prompts=["p"] * 4, completion_ids=[[0] * n for n in (10, 30, 10, 20)])  # fmt: skip # noqa: E501
    assert values == pytest.approx([0.5, -0.5, 0.0, 0.0])


def test_cosine_ends():
    cosine = get_reward({"name": "cosine_scaled", "max_len": 100})
    ids = [[0] * n for n in (0, 50, 100)]
    assert cosine(["42"] * 3, ["42"] * 3, completion_ids=ids) == pytest.approx([1.0, 0.75, 0.5])
    assert cosine(["41"] * 3, ["42"] * 3, completion_ids=ids) == pytest.approx([-1.0, -0.75, -0.5])
    assert all(math.isfinite(v) for v in cosine(["41"] * 3, ["42"] * 3, completion_ids=ids))


def test_xmlcount_of_well_formed_text():
    assert get_reward("xmlcount")(["<reasoning>\na\n</reasoning>\n<answer>\nb\n</answer>"]) == [0.5]


def test_every_difference_is_about_a_reward_of_ours():
    assert {d.reward for d in DIFFERENCES} <= CATALOGUE.keys()
