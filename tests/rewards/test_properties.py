"""Whatever the text: a float in range or None, always the same, in any order, process or thread."""

import json
import multiprocessing
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from r1llama.rewards import extract_answer, get_reward
from r1llama.rewards.arithmetic import evaluate
from r1llama.rewards.audit import load_cases
from r1llama.rewards.numeric import parse_number
from r1llama.rewards.statements import number_from_words

# ruff: noqa: E501
ANY = st.text(st.characters(codec=None), max_size=300)  # surrogates too
PIECES = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "{", "####", " 42 ", "41", "or", "not", "$", "\\",
         "The answer is", "\n", "=", "x", "^", "!", "%", "\\frac", "(", ")", ",", ".", "-", "答案是", "\ud800", "\x00", "**",
         "```python\n", "```", "Step 1: a b", "A", "(B)", "1/0", "9^9^9", "\\sqrt", "\\text{", "is wrong", "?"]
    ),
    max_size=30,
).map("".join)  # fmt: skip
TEXT = ANY | PIECES

COLUMNS = {"solution": "42", "nums": [1, 2, 3], "target": 6, "entry": {"answer": "42", "metadata": {}}}
REWARDS = {
    "accuracy": (0, 1), "strict_numeric": (0, 1), "lenient_numeric": (0, 1), "format": (0, 1), "think_format": (0, 1),
    "reasoning_format": (0, 1), "tag_count": (0, 1), "tag_order": (0, 1), "xmlcount": (0, 1), "reasoning_steps": (0, 1),
    "len": (-0.5, 0.5), "cosine_scaled": (-1, 1), "repetition_penalty": (-1, 0), "countdown": (0, 1),
    "multiple_choice": (0, 1), "exact_match": (0, 1), "integer": (0, 1), "language_consistency": (0, 1),
    "code_format": (0, 1), "reasoning_gym": (0, 1),
}  # fmt: skip


def call(reward, texts, **more):
    columns = {name: [value] * len(texts) for name, value in COLUMNS.items()}
    columns["completion_ids"] = [list(str(text).encode("utf-8", "replace")) for text in texts]
    columns["prompts"] = ["What is 6 * 7, in one word?"] * len(texts)
    return reward(completions=texts, **{**columns, **more})


@pytest.mark.parametrize("name", REWARDS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXT)
@example(text="\ud800\\boxed{\udfff}")
@example(text="\\boxed{" * 30)
def test_any_text_gives_a_number_in_range_or_none(name, text):
    reward = get_reward(name)
    (value,) = call(reward, [text])
    low, high = REWARDS[name]
    assert value is None or (type(value) is float and low <= value <= high)
    assert call(reward, [text]) == [value]
    ids = {"completion_ids": [list(text.encode("utf-8", "replace"))]}
    assert call(reward, [[{"role": "assistant", "content": text}]], **ids) == [value]


@settings(max_examples=100, deadline=None)
@given(
    value=st.integers(-(10**12), 10**12),
    shape=st.sampled_from(["<answer>{}</answer>", "#### {}", "\\boxed{{{}}}", "$\\boxed{{{}}}$", "The answer is {}."]),
    mode=st.sampled_from(["strict", "lenient"]),
)
def test_the_plain_sections_are_read_like_any_other(value, shape, mode):
    plain = shape.format(f"{value:,}")
    assert extract_answer(plain, mode) == extract_answer(plain + "\nI hope this helps.", mode)


@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_extraction_either_finds_or_says_why(text):
    for mode in ("strict", "lenient"):
        answer = extract_answer(text, mode)
        assert (answer.value is None) == (answer.reason != "found") == (answer.source is None)


@settings(max_examples=150, deadline=None)
@given(
    value=st.integers(-(10**12), 10**12),
    shape=st.sampled_from(["{}", "{:,}", "${}", "{}.0", "{}.", "{} apples", "\\boxed{{{}}}"]),
)
def test_every_spelling_of_an_integer_is_that_integer(value, shape):
    written = shape.format(value)
    inner = written.removeprefix("\\boxed{").removesuffix("}") if "boxed" in written else written
    number = parse_number(inner)
    assert number is not None
    assert number.value == value
    reward = get_reward("accuracy")
    text = written if "boxed" in written else f"The answer is {written}"
    assert reward([text, text], [str(value), str(value + 1)]) == [1.0, 0.0]


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.integers(0, 99).map(str),
        lambda s: st.tuples(s, st.sampled_from("+-*"), s).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
        max_leaves=8,
    )
)
def test_arithmetic_agrees_with_python(expression):
    result = evaluate(expression)
    assert result is not None
    assert result.value == eval(expression)  # of our own making


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999_999_999))
def test_number_words(value):
    assert number_from_words(in_words(value)) == value


def in_words(n):
    small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()  # noqa: SIM905
    tens = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
    if n < 20:
        return small[n]
    if n < 100:
        return tens[n // 10] + (f"-{small[n % 10]}" if n % 10 else "")
    for size, word in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if n >= size:
            rest = n % size
            return f"{in_words(n // size)} {word}" + (f" {in_words(rest)}" if rest else "")
    raise AssertionError


def some_cases():
    cases = [c for c in load_cases() if c["reward"] == "accuracy" and "prompt" not in c and c["class"] != "hostile"]
    return random.Random(0).sample(cases, 150)


def values_of(cases):
    return get_reward("accuracy")([c["completion"] for c in cases], [c["columns"]["solution"] for c in cases])


def test_order_changes_nothing():
    cases = some_cases()
    values = values_of(cases)
    order = random.Random(1).sample(range(len(cases)), len(cases))
    assert values_of([cases[i] for i in order]) == [values[i] for i in order]


def test_threads_change_nothing():
    cases = some_cases()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(values_of, [cases] * 4))
    assert results == [values_of(cases)] * 4


def test_processes_change_nothing():
    cases = some_cases()[:60]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(pickle.loads(pickle.dumps(get_reward("accuracy"))), ([c["completion"] for c in cases], [c["columns"]["solution"] for c in cases])) == values_of(cases)  # fmt: skip


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_is_picklable_and_named(name):
    reward = get_reward(name)
    again = pickle.loads(pickle.dumps(reward))
    assert again.__name__ == reward.__name__
    text = "<think>one two three</think><answer>42</answer>"
    assert call(again, [text]) == call(reward, [text])


def test_corpus_is_ascii_json():
    # so that no editor or transfer can change the homoglyphs and invisible characters in it
    from r1llama.rewards.audit import CORPUS

    for line in CORPUS.read_text(encoding="ascii").splitlines():
        json.loads(line)
