"""Which problems GRPO trains on, and in what order, by how often a model already solves them.

The column `pass_rate` (0 to 1) comes from `r1llama pass-rate`. A problem that is always or never solved gives groups
of equal rewards, from which nothing is learned.
"""

from datasets import Dataset, IterableDataset

from r1llama.training.recipe import RecipeError
from r1llama.training.stage import log

COLUMN = "pass_rate"


def by_pass_rate(rows: Dataset, low: float | None, high: float | None, easy_first: bool, seed: int) -> Dataset:
    """The problems within a band of pass rates.

    Args:
        rows: Problems.
        low: Smallest pass rate that stays (`min_pass_rate`); None: no bound. Any bound drops problems without a rate.
        high: Largest one (`max_pass_rate`).
        easy_first: Sort from the highest pass rate to the lowest, in random order among equals.
        seed: Of that order.

    Raises:
        RecipeError: There are no pass rates, or none within the band.
    """
    if low is None and high is None and not easy_first:
        return rows
    if isinstance(rows, IterableDataset) or COLUMN not in rows.column_names:
        raise RecipeError(
            "`min_pass_rate`, `max_pass_rate` and `easy_first` need a dataset that does not stream and has a column "
            f"`{COLUMN}`: `r1llama pass-rate --config RECIPE --output_file rated.jsonl` writes one"
        )
    rates = rows[COLUMN]
    wrong = next((rate for rate in rates if rate is not None and not 0 <= rate <= 1), None)
    if wrong is not None:
        raise RecipeError(f"the column `{COLUMN}` holds {wrong}: a pass rate is a share, from 0 to 1")
    if low is not None or high is not None:
        low, high = low or 0.0, 1.0 if high is None else high
        kept = [row for row, rate in enumerate(rates) if rate is not None and low <= rate <= high]
        log.info("%d of %d problems have a pass rate from %g to %g", len(kept), len(rows), low, high)
        if not kept:
            known = [rate for rate in rates if rate is not None]
            have = f"they lie from {min(known):g} to {max(known):g}" if known else "there are none"
            raise RecipeError(f"no problem has a `{COLUMN}` from {low:g} to {high:g}: {have}; widen the band")
        rows = rows.select(kept)
    return rows.shuffle(seed=seed).sort(COLUMN, reverse=True) if easy_first else rows
