"""The adversarial corpus: no false positive, no crash, and at most one false negative in a hundred."""

import pytest

from r1llama.rewards.audit import by_class, load_cases, run_cases


@pytest.fixture(scope="module")
def outcomes():
    return run_cases(load_cases())


def test_no_false_positive_and_no_error(outcomes):
    assert [o.case["id"] for o in outcomes if o.kind in ("false positive", "error")] == []


def test_few_false_negatives(outcomes):
    summary = by_class(outcomes)[-1]
    assert summary.false_negatives <= 0.01 * summary.positives


def test_no_case_is_slow(outcomes):
    # The first case for algebra also starts the workers.
    assert sorted(o.seconds for o in outcomes)[-2] < 2.0


def test_the_corpus_is_large_and_says_what_it_expects():
    cases = load_cases()
    assert len(cases) > 1500
    assert len({case["id"] for case in cases}) == len(cases)
    assert len({case["class"] for case in cases}) > 20
