r"""Every failure measured on the popular graders, by name. The comments name the grader that had it."""

import pytest

from r1llama.rewards import get_reward

ACCURACY = [
    # open-r1, TRL
    ("plain statement", "The answer is 42.", "42", 1.0),
    ("box in unclosed thoughts", r"<think>\boxed{42}", "42", 0.0),
    ("negated", "definitely not $42$", "42", 0.0),
    ("negated after thoughts", "<think>x</think>definitely not $42$", "42", 0.0),
    ("percent", r"\boxed{42\%}", "42", 0.0),
    ("product left undone", r"\boxed{6\cdot7}", "42", 0.0),
    ("assignment", r"\boxed{x=42}", "42", 1.0),
    ("two boxes", r"\boxed{41},\boxed{42}", "42", 0.0),
    ("last box wins", r"\boxed{41} so \boxed{42}", "42", 0.0),
    ("pair for a list", r"\boxed{(1,2)}", "1,2", 0.0),
    # math-verify
    ("1/2004! and 1/2006!", r"\boxed{\frac{1}{2004!}}", r"\frac{1}{2006!}", 0.0),
    ("1/2^99 and 1/2^98", r"\boxed{\frac{1}{2^{99}}}", r"\frac{1}{2^{98}}", 0.0),
    ("1-1/e and 1+1/e", r"\boxed{1-\frac1e}", r"1+\frac{1}{e}", 0.0),
    ("ellipsis", r"\boxed{1,2,\ldots,n}", r"1,3,5,\ldots", 0.0),
    ("two lines", r"\boxed{3x-1*y+13=0}", "3x+4y+14=0", 0.0),
    ("5 and 5 %", r"\boxed{5}", r"5\%", 0.0),
    ("case", r"\boxed{A}", "a", 0.0),
    # open-r1: an unreadable gold is not right
    ("no gold", r"\boxed{42}", "", None),
    # verl and nanochat, GSM8K
    ("trailing dot", "#### 18.", "18", 1.0),
    ("dollar", "#### $18", "18", 1.0),
    ("cents", "#### 18.00", "18", 1.0),
    ("no space", "####18", "18", 1.0),
    ("text after", "#### 18\n" + "I hope this helps. " * 30, "18", 1.0),
    # willccbb
    ("negative", "<answer>-42</answer>", "-42", 1.0),
    ("comma", "<answer>1,042</answer>", "1042", 1.0),
    ("decimal", "<answer>42.0</answer>", "42", 1.0),
    # Visual-RFT: the answer as a substring
    ("substring", "<answer>142</answer>", "42", 0.0),
]


@pytest.mark.parametrize(("completion", "gold", "value"), [c[1:] for c in ACCURACY], ids=[c[0] for c in ACCURACY])
def test_accuracy(completion, gold, value):
    assert get_reward("accuracy")([completion], [gold]) == [value]


@pytest.mark.parametrize("tower", [r"9^{9^{9^{9}}}", "(10^9)!", "3^{100000000}"])
def test_huge_numbers_are_refused_at_once(tower):
    assert get_reward("accuracy")([rf"\boxed{{{tower}}}"] * 2, ["42", r"\frac{\pi}{2}"]) == [0.0, 0.0]


BLOCK = "<think>\na\n</think>\n<answer>\nb\n</answer>"


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        (BLOCK, 1.0),
        (BLOCK + "\njunk", 0.0),
        ("<think>\na\n</think>\n" + BLOCK, 0.0),
        (BLOCK + "\n<answer>\nc\n</answer>", 0.0),
        ("<think>\na\n<answer>\nb\n</answer>\n</think>", 0.0),
        ("<think>\n\n</think>\n<answer>\n\n</answer>", 0.0),
    ],
)
def test_format(completion, value):
    assert get_reward("format")([completion]) == [value]


def test_reversed_tags_and_empty_bullets():
    assert get_reward("tag_count")(["\n</answer>\n<answer>\n\n</think>\n<think>\n"]) == [0.0]
    assert get_reward("reasoning_steps")(["\n- \n- \n- "]) == [0.0]


def test_cosine_is_not_periodic():
    cosine = get_reward({"name": "cosine_scaled", "max_len": 1000})
    values = cosine(["42"] * 4, ["42"] * 4, completion_ids=[[0] * n for n in (0, 1000, 1500, 2000)])
    assert values == pytest.approx([1.0, 0.5, 0.5, 0.5])


def test_length_is_compared_within_a_prompt():
    lengths = get_reward("len")
    assert lengths(["42", "42"], ["42", "42"], prompts=["p", "q"], completion_ids=[[0], [0] * 9]) == [0.0, 0.0]


def test_repetition_sees_text_without_spaces():
    assert get_reward("repetition_penalty")(completions=["abc" * 100])[0] < -0.9


@pytest.mark.parametrize("text", ["2**3", "7//2", "-1+3", "1.5*2", "99**98**97", "1 5 2", "5-2;0", "３", "5-2)"])
def test_countdown_takes_arithmetic_only(text):
    assert get_reward("countdown")([f"<answer>{text}</answer>"], nums=[[1, 5, 2]], target=[3]) == [0.0]


def test_countdown_accepts_the_target_beside_it():
    assert get_reward("countdown")(["<answer>(5 - 2) * 1 = 3</answer>"], nums=[[1, 5, 2]], target=[3]) == [1.0]


def test_xmlcount_is_never_negative():
    text = "<reasoning>\na\n</reasoning>\n<answer>\nb\n</answer>\n"
    assert get_reward("xmlcount")([text, text + "x" * 2000]) == pytest.approx([0.5, 0.0], abs=0.01)
