"""Problems chosen and ordered by how often the model solves them."""

import json
from pathlib import Path

import pytest

from r1llama.cli import main as cli
from r1llama.training import grpo, pass_rate
from r1llama.training.recipe import RecipeError

from .conftest import argv, json_lines, tables, write_jsonl

PASSING = ["tests.training.rewards.has_digit"]


@pytest.fixture
def rated(tmp_path):
    """Sixteen problems; the fourth has no rate."""
    rows = [{"prompt": f"{i}+1=", "pass_rate": None if i == 3 else (i % 8) / 7} for i in range(16)]
    return write_jsonl(tmp_path / "rated.jsonl", rows)


def test_pass_rates_are_the_shares_of_what_was_sampled_and_continue(grpo_recipe, tmp_path, capsys):
    """Cut short within its second batch of four, it ends as if it had not been."""
    path = tmp_path / "rated.jsonl"
    words = argv(grpo_recipe, tmp_path / "r.yaml", reward_funcs=PASSING)
    assert cli(["pass-rate", *words, "--output_file", str(path)]) == 0
    summary = json.loads(capsys.readouterr().out.rpartition("{")[2].join(["{", ""]))
    rows, drawn = json_lines(path), json_lines(tmp_path / "rated.completions.jsonl")
    assert [row["prompt"] for row in rows] == [f"{a}+{b}=" for a in range(4) for b in range(4)]
    for i, row in enumerate(rows):
        values = [line["has_digit"] for line in drawn[4 * i : 4 * i + 4]]
        judged = [value for value in values if value is not None]
        assert row["pass_rate"] == (sum(judged) / len(judged) if judged else None)
    rates = [row["pass_rate"] for row in rows]
    assert len(set(rates)) > 2
    assert (summary["problems"], summary["never"]) == (16, rates.count(0.0))

    first = path.read_text()
    path.unlink()
    completions = tmp_path / "rated.completions.jsonl"
    completions.write_bytes(completions.read_bytes()[:1500])
    pass_rate.main([*words, "--output_file", str(path)])
    assert path.read_text() == first
    with pytest.raises(RecipeError, match="was begun with `seed: 42`"):
        pass_rate.main([*words, "--output_file", str(path), "--seed", "1"])


def test_a_band_of_pass_rates_easy_ones_first(grpo_recipe, rated, tmp_path, caplog):
    """Two epochs of the same order: what is logged at each step are its prompts."""
    caplog.set_level("INFO", logger="r1llama")
    changes = {"dataset_name": str(rated), "min_pass_rate": 0.1, "max_pass_rate": 0.6, "easy_first": True}
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", **changes, max_steps=6, log_completions_steps=1))
    assert "7 of 16 problems have a pass rate from 0.1 to 0.6" in caplog.text
    rate = {row["prompt"]: row["pass_rate"] for row in json_lines(Path(rated))}
    rows = tables(tmp_path / "out")
    seen = [rate[row["prompt"]] for row in rows]
    epoch = len(seen) // 2
    for part in (seen[:epoch], seen[epoch:]):
        assert part == sorted(part, reverse=True)
        assert max(part) > min(part)
    assert all(0.1 <= value <= 0.6 for value in seen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_pass_rate": 0.7, "max_pass_rate": 0.3}, "must be a band within 0 to 1"),
        (
            {"min_pass_rate": 0.15, "max_pass_rate": 0.2},
            "no problem has a `pass_rate` from 0.15 to 0.2: they lie from 0 ",
        ),
    ],
)
def test_bands_without_problems_are_refused(changes, message, grpo_recipe, rated, tmp_path):
    with pytest.raises(RecipeError, match=message):
        grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", dataset_name=str(rated), **changes))


def test_a_dataset_without_pass_rates_is_refused(grpo_recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"r1llama pass-rate --config RECIPE"):
        grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", easy_first=True))


def test_a_model_without_weights_has_no_pass_rates(grpo_recipe, expert_dir, tmp_path):
    words = argv(grpo_recipe, tmp_path / "r.yaml", model_name_or_path=str(expert_dir))
    with pytest.raises(RecipeError, match="holds no weights: nothing to rate"):
        pass_rate.main([*words, "--output_file", str(tmp_path / "rated.jsonl")])
