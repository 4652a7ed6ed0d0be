"""What rewards log, and the cause they name when nothing moves."""

from r1llama.rewards import accuracy_reward, diagnose
from r1llama.rewards.diagnostics import zero_variance_rate


def test_samples_and_rates_are_logged():
    completions = ["<answer>42</answer>", "The answer is 42.", "<think>42", "41 or 42", "<answer>41</answer>", "42"]
    prompts, extra, metrics = ["p"] * 2 + ["q"] * 4, {}, {}
    solution = ["42"] * 5 + [""]
    values = accuracy_reward(
        completions, solution, prompts=prompts, log_extra=extra.__setitem__, log_metric=metrics.__setitem__
    )
    assert values == [1.0, 1.0, 0.0, 0.0, 0.0, None]
    assert extra["accuracy/answer"] == ["42", "42", "", "", "41", "42"]
    assert extra["accuracy/gold"] == solution
    assert extra["accuracy/reason"] == ["number", "number", "unfinished_think", "hedged", "number", "no_gold"]
    assert all(ms >= 0 for ms in extra["accuracy/ms"])
    assert metrics == {
        "accuracy/parse_failure_rate": 1 / 6,
        "accuracy/truncation_rate": 1 / 6,
        "accuracy/timeout_rate": 0.0,
        "accuracy/unjudged_rate": 1 / 6,
        "accuracy/disagreement_rate": 1 / 6,
        "accuracy/zero_variance_rate": 1.0,
    }


def test_zero_variance():
    assert zero_variance_rate([1.0, 0.0, 1.0, 1.0], ["p", "p", "q", "q"]) == 0.5
    assert zero_variance_rate([1.0, 0.0], None) is None


def test_truncation_is_named_with_its_numbers():
    completions = ["<think>" + "x" * 50] * 91 + ["<think>x</think>41"] * 9
    (cause, *_) = diagnose([0.0] * 100, completions, lengths=[200] * 91 + [180] * 9, max_completion_length=200)
    assert cause == "91 % of completions have no </think>: max_completion_length is 200 and the mean is 198"


def test_other_causes():
    assert "None" in diagnose([None], ["x"])[0]
    assert "exploited" in diagnose([1.0, 1.0], ["x", "y"])[0]
    assert "special tokens" in diagnose([0.0, 0.0], ["x", "y"])[0]
    assert "prefilled=True" in diagnose([0.0], ["a</think><answer>b</answer>"])[0]
    assert "'hedged'" in diagnose([0.0], ["<think>a</think>b"], reasons=["hedged"])[0]
    assert "equal rewards" in diagnose([1.0, 1.0, 0.0, 0.0], list("abcd"), prompts=["p", "p", "q", "q"])[0]
    assert diagnose([1.0, 0.0], ["x", "y"]) == []
    assert diagnose([], []) == []
