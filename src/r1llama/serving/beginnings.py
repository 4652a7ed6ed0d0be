"""Which texts of a step begin alike in vLLM's cache, as those of a group do: their blocks have the same ids."""

from collections import defaultdict
from itertools import chain

import torch

WORTH_SHARING = 2048  # tokens that need not be read again, from which on products of their own are sooner
ALIKE = 4  # blocks: beginnings are cut to a multiple of these, that more of them have one length


def alike_at_first(table: torch.Tensor, lengths: torch.Tensor, size: int) -> list[tuple[torch.Tensor, int]]:
    """Groups `(G, n)` of n texts that begin with the same blocks, and how many, which are all full. Texts for which it
    is not worth it are groups of their own, with none.

    Args:
        table: Blocks of each text `(N, blocks)`.
        lengths: Of the texts, the new token included, `(N,)` or more.
        size: Tokens of a block.
    """
    full = ((lengths[: len(table)] - 1) // size).tolist()
    groups = defaultdict(list)
    for rows, shared in split_by_beginning(table, full, list(range(len(table))), 0) if full else []:
        groups[len(rows), shared - shared % ALIKE].append(rows)
    alone, found = [], []
    for (n, shared), rows in groups.items():
        if len(rows) * (n - 1) * shared * size >= WORTH_SHARING:
            found.append((torch.tensor(rows), shared))
        else:
            alone += chain.from_iterable(rows)
    return [*found, (torch.tensor(sorted(alone), dtype=torch.long)[:, None], 0)]


def split_by_beginning(
    table: torch.Tensor, full: list[int], rows: list[int], known: int
) -> list[tuple[list[int], int]]:
    """Parts of the rows, and how many blocks each begins with together, so that the most need not be read again:
    prompt by prompt, unless what all prompts begin with is worth more.

    Args:
        table: Blocks of each text `(N, blocks)`.
        full: How many blocks of each text are full.
        rows: Texts.
        known: How many of their first blocks are the same.
    """
    until = min(full[row] for row in rows)
    same = known + int((table[rows, known:until] == table[rows[0], known:until]).all(0).long().cumprod(0).sum())
    parts = defaultdict(list)
    for row in rows:
        parts[int(table[row, same]) if full[row] > same else ~row].append(row)
    if len(parts) == len(rows):
        return [(rows, same)]
    finer = list(chain.from_iterable(split_by_beginning(table, full, part, same) for part in parts.values()))
    saved = sum((len(part) - 1) * shared for part, shared in finer)
    return finer if saved > (len(rows) - 1) * same else [(rows, same)]
