"""Numbers in words and times of day."""

import pytest

from r1llama.rewards.number_words import _LANGUAGES, _table, clock_times, number_from_words

WRITTEN = {
    "forty-two": 42, "one hundred and five": 105, "zweiundvierzig": 42, "einundzwanzig": 21, "vingt et un": 21,
    "soixante-douze": 72, "quatre-vingt-dix-sept": 97, "cuarenta y dos": 42, "veintidós": 22, "quarantadue": 42,
    "ventuno": 21, "ventotto": 28, "vinte e um": 21, "kırk iki": 42, "on beş": 15, "сорок два": 42, "四十二": 42,
    "三百零五": 305, "一万二千": 12_000, "百二十": 120, "十五": 15,
}  # fmt: skip


@pytest.mark.parametrize("text", WRITTEN)
def test_written_numbers(text):
    assert number_from_words(text) == WRITTEN[text]


def test_every_language_counts_to_a_hundred():
    assert set(range(1, 101)) <= set(_table().values())
    assert len(_table()) > 90 * len(_LANGUAGES)


@pytest.mark.parametrize("text", ["", "forty two three", "null", "四二", "十百", "zwei und vierzig", "hundred", "and"])
def test_other_text_is_no_number(text):
    assert number_from_words(text) is None


def test_times_of_day():
    assert clock_times("from 3:45 PM to 12:05 a.m.") == [(15, 45), (0, 5)]
    assert clock_times("12:30 pm and 8:15") == [(12, 30)]
