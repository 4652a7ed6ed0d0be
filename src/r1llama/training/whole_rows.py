"""Rows longer than `max_length` are left out, refused or cut as the recipe says. TRL cuts them, and says nothing."""

import copy
import logging

from datasets import Dataset
from pyarrow import compute

from r1llama.data.loading import is_empty
from r1llama.training.recipe import RecipeError

log = logging.getLogger("r1llama")

OVERLONG = ("drop", "stop", "truncate")


class WholeRows:
    """For an `SFTTrainer`, in front of it: `class MyTrainer(WholeRows, SFTTrainer)`.

    Args:
        overlong: What becomes of a row of more than `max_length` tokens, rendered and tokenised as it is trained on:
            `drop` leaves it out, `stop` refuses it, `truncate` keeps its beginning. The first two hold for packed
            rows too, which would otherwise be cut.
    """

    def __init__(self, *args, overlong: str = "truncate", **kwargs):
        self.overlong = overlong
        self.long_rows: dict[str, int] = {}  # how many, of `train` and `eval`; streams are not counted ahead
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if args.max_length is not None:
            whole = copy.copy(args)
            whole.max_length, whole.shuffle_dataset = None, False
            dataset = super()._prepare_dataset(dataset, processing_class, whole, False, formatting_func, dataset_name)
            dataset = self._fitting(dataset, args.max_length, dataset_name)
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _fitting(self, rows, limit: int, name: str):
        if not isinstance(rows, Dataset):
            if self.overlong != "truncate":
                rows = rows.filter(_Fits(limit, self.overlong, name), input_columns=["input_ids"])
        elif long := [(row, length) for row, length in enumerate(_lengths(rows)) if length > limit]:
            self.long_rows[name] = len(long)
            share = f"{len(long)} of {len(rows)} rows"
            if self.overlong == "stop":
                raise _refusal(f"{name}: {share}, the first with {long[0][1]}", limit)
            done = "cut there" if self.overlong == "truncate" else "left out"
            most = max(length for _, length in long)
            log.warning(
                "%s: %s have more than `max_length: %d` tokens (%d at most): %s", name, share, limit, most, done
            )
            if self.overlong == "drop":
                rows = rows.select(sorted(set(range(len(rows))) - {row for row, _ in long}))
        if is_empty(rows):
            raise RecipeError(
                f"{name}: every row has more than `max_length: {limit}` tokens: raise it, or shorten them"
            )
        return rows


def _lengths(rows: Dataset) -> list[int]:
    batches = rows.select_columns("input_ids").with_format("arrow").iter(1000)
    return [length for batch in batches for length in compute.list_value_length(batch["input_ids"]).to_pylist()]


class _Fits:
    """Whether a row of a stream fits; those that do not are counted, and the count logged at 1, 10, 100 ..."""

    def __init__(self, limit: int, overlong: str, name: str):
        self.limit, self.overlong, self.name, self.found = limit, overlong, name, 0

    def __call__(self, input_ids: list[int]) -> bool:
        if len(input_ids) <= self.limit:
            return True
        if self.overlong == "stop":
            raise _refusal(f"{self.name}: a row with {len(input_ids)}", self.limit)
        self.found += 1
        if str(self.found).strip("0") == "1":
            log.warning("%s: %d rows of more than %d tokens left out so far", self.name, self.found, self.limit)
        return False


def _refusal(what: str, limit: int) -> RecipeError:
    return RecipeError(
        f"{what} tokens, more than `max_length: {limit}`: raise it, shorten the rows, or set `overlong` to drop "
        "(leave them out) or truncate (cut them)"
    )
