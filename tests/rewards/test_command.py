"""The command line: what it prints, writes and returns."""

import argparse
import json

import pytest

from r1llama.rewards import CATALOGUE
from r1llama.rewards.command import main, register


def test_register_gives_parsed_arguments_a_function():
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    assert callable(parser.parse_args(["rewards", "list"]).func)


def test_list_names_every_reward(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in CATALOGUE)
    assert "solution" in printed


def test_score(tmp_path, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"prompt": "6*7?", "completion": "<think>a</think><answer>42</answer>", "solution": "42"},
        {"prompt": "6*7?", "completion": [{"role": "assistant", "content": "41"}], "solution": "42"},
    ]
    source.write_text("\n".join(map(json.dumps, rows)))
    gated = '{"name": "gated", "reward": "accuracy", "gate": "format"}'
    assert main(["score", str(source), "--reward", "accuracy", "--reward", gated, "--output", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "accuracy_reward" in printed
    assert "accuracy/parse_failure_rate" in printed
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["rewards"]["accuracy_reward"] for row in written] == [1.0, 0.0]
    assert [row["accuracy/answer"] for row in written] == ["42", "41"]


def test_score_names_a_missing_column(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text('{"completion": "42"}')
    assert main(["score", str(source), "--reward", "accuracy"]) == 2
    assert "needs the column solution" in capsys.readouterr().err


def case(**more):
    return {
        "reward": "accuracy",
        "completion": "The answer is 42.",
        "columns": {"solution": "42"},
        "expect": 1.0,
        **more,
    }


@pytest.mark.parametrize(("expect", "status"), [(1.0, 0), (0.0, 1), (None, 1)])
def test_audit_of_a_file(tmp_path, capsys, expect, status):
    source, report = tmp_path / "cases.jsonl", tmp_path / "report.json"
    source.write_text(json.dumps(case(expect=expect)))
    assert main(["audit", str(source), "--output", str(report)]) == status
    assert json.loads(report.read_text())[-1]["passed"] == (status == 0)
    assert ("false positive" in capsys.readouterr().out) == (status == 1)


def test_audit_of_another_reward(tmp_path):
    source = tmp_path / "cases.jsonl"
    source.write_text(json.dumps(case()))
    assert main(["audit", str(source), "--reward", '{"name": "accuracy", "mode": "strict"}']) == 1


def test_audit_reports_a_reward_that_raises(tmp_path, capsys):
    source = tmp_path / "cases.jsonl"
    source.write_text(json.dumps(case(reward="countdown")))
    assert main(["audit", str(source)]) == 1
    assert "error: " in capsys.readouterr().out


def test_a_broken_file_is_named_with_its_line(tmp_path):
    source = tmp_path / "cases.jsonl"
    source.write_text('{"reward": "accuracy"}')
    with pytest.raises(ValueError, match="line 1: a case needs"):
        main(["audit", str(source)])
