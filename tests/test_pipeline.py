"""The pipeline's data and the chain of its recipes; the smoke size of the whole run."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from r1llama.rewards import accuracy_reward, format_reward
from r1llama.tasks.arithmetic import split_of

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("pipeline", ROOT / "examples" / "pipeline.py")
pipeline = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pipeline)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    pipeline.prepare(folder)
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in folder.glob("*.jsonl")
    }


def problems_of(rows) -> list[str]:
    messages = [message for row in rows for message in row.get("messages") or row["prompt"]]
    return [message["content"] for message in messages if message["role"] == "user"]


def test_no_problem_is_used_twice_and_no_stage_sees_what_it_is_tested_on(data):
    lines = [line for row in data["text"] for line in row["text"].split("\n")]
    chains = [line.partition(" ")[0] for line in lines if re.match(r"\d[+-]\d", line)]
    used = chains + [p for name in ("answers", "conversations", "traces", "problems") for p in problems_of(data[name])]
    assert len(chains) == pipeline.CHAINS
    assert len(set(used)) == len(used)
    assert {split_of(problem) for problem in used} == {"train"}
    assert {split_of(problem) for problem in problems_of(data["test_problems"])} == {"test"}
    assert not {row["text"] for row in data["text"]} & {row["text"] for row in data["test_text"]}
    assert len(data["text"]) == pipeline.PARAGRAPHS + pipeline.CHAINS // 5


def test_every_answer_is_right_and_traces_have_the_format(data):
    for name, formatted in [("answers", 0.0), ("traces", 1.0)]:
        rows = data[name]
        answers = [row.get("completion") or row["messages"][-1:] for row in rows]
        solutions = [str(eval(problem.rstrip("="))) for problem in problems_of(rows)]
        assert set(accuracy_reward(completions=answers, solution=solutions)) == {1.0}
        assert set(format_reward(completions=answers)) == {formatted}


@pytest.mark.parametrize("size", ["real", "smoke"])
def test_each_stage_starts_from_the_one_before(size):
    outputs = []
    for stage in pipeline.STAGES:
        values = yaml.safe_load((ROOT / "recipes" / "pipeline" / f"{stage}.yaml").read_text(encoding="utf-8"))
        smoke = values.pop("smoke")
        if size == "smoke":
            values |= {"output_dir": values["output_dir"] + "-smoke"} | smoke
        if outputs:
            assert outputs[-1] == values.get("model_name_or_path", values.get("tokenizer_name"))
        outputs.append(values["output_dir"])


@pytest.mark.slow
def test_the_smoke_size_runs_and_a_second_run_does_nothing(tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    command = [sys.executable, str(ROOT / "examples" / "pipeline.py"), "--smoke"]
    first = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    folder = tmp_path / "runs" / "pipeline"
    results = json.loads((folder / "results-smoke.json").read_text(encoding="utf-8"))
    assert list(results["stages"]) == pipeline.STAGES[1:]
    assert all(score["perplexity"] > 1 for score in results["stages"].values())
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*-smoke/*.safetensors")}
    assert len(before) == len(pipeline.STAGES) - 1
    second = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*-smoke/*.safetensors")} == before
    table = [line for line in first.stdout.splitlines() if line.startswith("|")]
    assert table == [line for line in second.stdout.splitlines() if line.startswith("|")]
