"""Combined rewards: the arithmetic, None, columns, names, and specs as they stand in a YAML recipe."""

import pickle
from types import SimpleNamespace

import pytest
import yaml

from r1llama.rewards import get_reward, required_columns
from r1llama.rewards.combinators import evaluate

RIGHT = "<think>a</think><answer>42</answer>"
WRONG = "<think>a</think><answer>41</answer>"
BARE = "42"


class Table:
    """A reward that looks values up."""

    __name__ = "table"

    def __init__(self, **values):
        self.values = values

    def __call__(self, completions, **kwargs):
        return [self.values[c] for c in completions]


class AsyncTable(Table):
    async def __call__(self, completions, **kwargs):
        return [self.values[c] for c in completions]


def test_weighted():
    reward = get_reward({"name": "weighted", "rewards": [Table(a=1.0, b=None, c=None), Table(a=0.5, b=2.0, c=None)], "weights": [1, 0.5]})  # fmt: skip # noqa: E501
    assert reward(completions=["a", "b", "c"]) == [1.25, 1.0, None]
    with pytest.raises(ValueError, match="weights"):
        get_reward({"name": "weighted", "rewards": ["format"], "weights": [1, 2]})


def test_gated_pays_nothing_without_the_format():
    reward = get_reward({"name": "gated", "reward": "accuracy", "gate": "format"})
    assert reward(completions=[RIGHT, WRONG, BARE], solution=["42"] * 3) == [1.0, 0.0, 0.0]
    assert reward.__name__ == "gated_accuracy_reward"


def test_an_undecided_gate_stays_open():
    reward = get_reward({"name": "gated", "reward": Table(a=0.7), "gate": Table(a=None)})
    assert reward(completions=["a"]) == [0.7]


def test_clipped():
    reward = get_reward({"name": "clipped", "reward": Table(a=-3.0, b=0.4, c=None), "low": -1})
    assert reward(completions=["a", "b", "c"]) == [-1.0, 0.4, None]


def test_scheduled_is_linear_between_points():
    reward = get_reward({"name": "scheduled", "reward": Table(a=2.0), "schedule": [[10, 1.0], [20, 0.0]]})
    steps = {0: 2.0, 10: 2.0, 15: 1.0, 20: 0.0, 99: 0.0}
    for step, value in steps.items():
        assert reward(completions=["a"], trainer_state=SimpleNamespace(global_step=step)) == [value]
    assert reward(completions=["a"]) == [2.0]
    with pytest.raises(ValueError, match="rise"):
        get_reward({"name": "scheduled", "reward": "format", "schedule": [[5, 1], [5, 0]]})


def test_dispatch_by_source():
    reward = get_reward({"name": "dispatch", "rewards": {"maths": "accuracy", "game": "countdown"}})
    values = reward(
        completions=[RIGHT, "<answer>3*2</answer>", "x"],
        source=["maths", "game", "other"],
        solution=["42", None, None],
        nums=[None, [2, 3], None],
        target=[None, 6, None],
    )
    assert values == [1.0, 1.0, None]
    assert required_columns(reward) == {"source", "solution", "nums", "target"}


def test_difficulty_band_drops_groups_without_advantage():
    reward = get_reward({"name": "difficulty_band", "reward": Table(r=1.0, w=0.0)})
    values = reward(completions=["r", "w", "r", "r", "w", "w"], prompts=["p", "p", "q", "q", "s", "s"])
    assert values == [1.0, 0.0, None, None, None, None]


def test_async_parts_are_awaited():
    reward = get_reward({"name": "weighted", "rewards": [AsyncTable(a=1.0), Table(a=2.0)]})
    assert reward(completions=["a"]) == [3.0]
    assert evaluate(AsyncTable(a=1.0), {"completions": ["a"]}) == [1.0]


def test_recipes_nest_them():
    spec = yaml.safe_load(
        """
        name: weighted
        weights: [1.0, 0.2]
        rewards:
          - {name: gated, reward: {name: accuracy, mode: strict}, gate: format}
          - {name: scheduled, reward: reasoning_steps, schedule: [[0, 1], [100, 0]]}
        """
    )
    reward = get_reward(spec)
    assert required_columns(reward) == {"solution"}
    again = pickle.loads(pickle.dumps(reward))
    assert again(completions=[RIGHT], solution=["42"], prompts=["p"]) == [1.0]


def test_a_wrong_spec_says_what_is_wrong():
    with pytest.raises(ValueError, match="needs 'name'"):
        get_reward({"reward": "accuracy"})
    with pytest.raises(TypeError, match="takes no parameters"):
        get_reward({"name": "tag_count", "x": 1})
    with pytest.raises(TypeError):
        get_reward({"name": "accuracy", "no_such": 1})
    with pytest.raises(ValueError, match="mode"):
        get_reward({"name": "accuracy", "mode": "loose"})
