import pytest
import torch

from r1llama.serving.beginnings import split_by_beginning


@pytest.mark.parametrize(("everywhere", "prompt", "expected"), [(4, 5, [9, 9, 9]), (20, 1, [20]), (0, 3, [3, 3, 3])])
def test_texts_are_parted_by_prompt_unless_what_all_begin_with_is_longer(everywhere, prompt, expected):
    """Three prompts of 2, 3 and 4 texts, which go on for a block of their own that is full and one that is not."""
    ids = iter(range(1000, 2000))
    first = [next(ids) for _ in range(everywhere)]
    rows = []
    for texts in (2, 3, 4):
        own = [next(ids) for _ in range(prompt)]
        rows += [first + own + [next(ids), next(ids)] for _ in range(texts)]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    table = torch.tensor(rows)[order]
    parts = split_by_beginning(table, [table.shape[1] - 1] * len(rows), list(range(len(rows))), 0)
    assert [shared for _, shared in parts] == expected
    assert sorted(row for part, _ in parts for row in part) == list(range(len(rows)))
    for part, shared in parts:
        assert (table[part, :shared] == table[part[0], :shared]).all()
