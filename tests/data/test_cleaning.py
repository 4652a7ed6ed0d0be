"""Repeated rows and evaluation problems are taken out, and nothing else."""

import random

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from r1llama.data.cleaning import RUN, Overlap, distinct, texts_of, uncontaminated


def both(texts):
    """The texts as a dataset and as a stream."""
    rows = Dataset.from_list([{"text": text} for text in texts])
    return rows, rows.to_iterable_dataset()


def left(rows):
    return [row["text"] for row in rows]


@given(
    st.lists(
        st.sampled_from(["a b", "A  B", "a\tb\n", "ab", "a-b", "x²", "x2", "e\u0301", "é", "3+4", "3-4"]), min_size=1
    )
)
@settings(deadline=None, max_examples=25)
def test_the_first_of_equal_rows_stays(texts):
    equal = {"A  B": "a b", "a\tb\n": "a b", "e\u0301": "é"}
    first = {}
    for text in texts:
        first.setdefault(equal.get(text, text), text)
    for rows in both(texts):
        kept = distinct(rows)
        assert left(kept) == list(first.values())
        assert left(kept) == list(first.values())  # each pass begins with an empty memory


def test_rows_that_differ_in_one_text_are_different():
    rows = Dataset.from_list([{"prompt": "q", "completion": answer} for answer in ("a", "b", "a")])
    assert distinct(rows)["completion"] == ["a", "b"]
    chats = Dataset.from_list([{"messages": [{"role": "user", "content": text}]} for text in ("a", "b", "A")])
    assert len(distinct(chats)) == 2
    joined = Dataset.from_list([{"prompt": "a b", "completion": "c"}, {"prompt": "a", "completion": "b c"}])
    assert len(distinct(joined)) == 2


def test_planted_overlaps_are_found_and_clean_rows_stay():
    rng = random.Random(0)
    words = [f"w{n}" for n in range(5000)]
    problems = [" ".join(rng.sample(words[:2500], rng.randint(8, 40))) for _ in range(50)]
    rows, planted = [], []
    for number in range(400):
        text = rng.sample(words[2500:], rng.randint(0, 40))
        if number % 4 == 0:
            leaked = rng.choice(problems).split()
            start = rng.randint(0, len(leaked) - RUN)
            text[len(text) // 2 : len(text) // 2] = leaked[start : start + RUN]
            planted.append(len(rows))
        elif number % 4 == 1:  # one word short of a run
            text += rng.choice(problems).split()[: RUN - 1]
        rows.append(" ".join(text) or "empty")
    overlap = Overlap(problems)
    expected = [text for number, text in enumerate(rows) if number not in planted]
    for source in both(rows):
        assert left(uncontaminated(source, overlap)) == expected


@pytest.mark.parametrize(
    ("problem", "row", "overlaps"),
    [
        ("One, two; three - four: five 6 seven eight!", "He said ONE two three four five 6 seven  EIGHT nine", True),
        ("one two three four five six seven eight", "one two three four five six seven, not eight", False),
        ("3+5-6=", "3+5-6=", True),
        ("3+5-6=", " 3+5-6=\n", True),
        ("3+5-6=", "3-5+6=", False),
        ("3+5-6=", "what is 3+5-6=", False),
        ("", "", False),
    ],
)
def test_words_and_short_problems(problem, row, overlaps):
    assert Overlap([problem])({"text": row}) == overlaps
    chat = [{"role": "user", "content": "other"}, {"role": "assistant", "content": row}]
    assert Overlap([problem])({"messages": chat}) == overlaps


def test_system_messages_are_not_compared():
    text = "one two three four five six seven eight"
    row = {"prompt": [{"role": "system", "content": text}, {"role": "user", "content": "q"}], "solution": "1"}
    assert not Overlap([text])(row)
    assert list(texts_of(row, system=False)) == ["q", "1"]
