"""Duplicates and evaluation problems, taken out of the rows to train on.

**Duplicates** are rows whose texts are the same once normalised: Unicode NFC, case folded, every run of white space
one space. (No compatibility forms, digits or punctuation are touched: x² is not x2, and 3+4 is not 3-4.) The first of
them stays. What is remembered of a row is an 8-byte BLAKE2b hash, as CCNet remembers paragraphs by 64 bits of SHA-1
(Wenzek et al. 2020, arXiv:1911.00359): among n different rows about n^2 / 2^65 pairs collide, 0.0003 among a hundred
million.

**Overlap** with an evaluation set is a run of 8 words that a row shares with one of its problems: words are
case-folded runs of letters and digits, as GPT-3 compared them (Brown et al. 2020, arXiv:2005.14165, appendix C: runs
of 8 to 13 words), with the 8 of open-r1's decontamination. A problem of fewer than 8 words has no such run: it
overlaps with a row that has a text, or a message, that is the same once normalised. System messages are not compared,
for all rows share them; neither are the solutions of the evaluation set.

- `distinct`, `uncontaminated`: rows in, rows out, of a `Dataset` or a stream
- `Overlap`: the runs of words of an evaluation set
"""

import hashlib
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher

log = logging.getLogger("r1llama")

RUN = 8  # words
TEXTS = ("prompt", "completion", "solution", "messages", "text")
CODE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()  # part of what caches are named after


def texts_of(row: dict, columns: Iterable[str] = TEXTS, system: bool = True) -> Iterator[str]:
    """The texts of a row: strings as they are, and the content of chat messages."""
    for name in columns:
        value = row.get(name)
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            for message in value:
                if isinstance(message, dict) and (system or message["role"] != "system"):
                    yield message["content"]


def normalised(text: str) -> str:
    """The text as duplicates are compared."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


class Distinct:
    """True for a row whose texts it has not seen yet."""

    def __init__(self, columns: Iterable[str] = TEXTS):
        self.columns, self.seen = tuple(columns), set()

    def __call__(self, row: dict) -> bool:
        texts = "\x1e".join(normalised(text) for text in texts_of(row, self.columns))
        key = int.from_bytes(hashlib.blake2b(texts.encode(), digest_size=8).digest(), "big")
        is_new = key not in self.seen
        self.seen.add(key)
        return is_new


def distinct(rows: Dataset | IterableDataset, columns: Iterable[str] = TEXTS) -> Dataset | IterableDataset:
    """Leave out each row that repeats an earlier one, and log how many.

    A stream remembers the hashes of one pass. Each pass starts with none, and a stream that continues
    (`load_state_dict`) reads again what lies before: it goes on exactly, if not at once.
    """
    columns = tuple(columns)
    if isinstance(rows, Dataset):
        name = Hasher.hash([rows._fingerprint, CODE, columns])
        kept = rows.filter(Distinct(columns), new_fingerprint=name, desc="deduplicating")
        log.info("deduplicate: %d of %d rows repeat an earlier one and are left out", len(rows) - len(kept), len(rows))
        return kept
    return IterableDataset.from_generator(
        _distinct_rows, features=rows.features, gen_kwargs={"rows": rows, "columns": columns}
    )


def _distinct_rows(rows: IterableDataset, columns: tuple[str, ...]) -> Iterator[dict]:
    is_new, repeated = Distinct(columns), 0
    for batch in rows.iter(batch_size=1):  # not `for row in rows`, of which a data loader's worker gets but a part
        row = {name: values[0] for name, values in batch.items()}
        if is_new(row):
            yield row
        else:
            repeated += 1
    log.info("deduplicate: %d rows repeated one of %d others and were left out", repeated, len(is_new.seen))


class Overlap:
    """Which rows share a run of words with the problems of evaluation sets.

    Args:
        problems: Texts of the problems.
    """

    def __init__(self, problems: Iterable[str]):
        self.runs, self.short, self.found = set(), set(), 0
        for problem in problems:
            runs = _runs(problem)
            self.runs.update(runs)
            if not runs and problem.strip():
                self.short.add(normalised(problem))

    def __call__(self, row: dict) -> bool:
        return any(
            not self.runs.isdisjoint(runs) if (runs := _runs(text)) else normalised(text) in self.short
            for text in texts_of(row, system=False)
        )

    def is_clean(self, row: dict) -> bool:
        """Not of the overlapping rows, which it counts, and logs at 1, 10, 100 ..."""
        if not self(row):
            return True
        self.found += 1
        if str(self.found).strip("0") == "1":
            log.info("decontaminate: %d rows left out so far", self.found)
        return False


def _runs(text: str) -> list[str]:
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", text).casefold())
    return [" ".join(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]


def uncontaminated(rows: Dataset | IterableDataset, overlap: Overlap) -> Dataset | IterableDataset:
    """Leave out each row that overlaps with the evaluation problems, and log how many."""
    if isinstance(rows, Dataset):
        name = Hasher.hash([rows._fingerprint, CODE, sorted(overlap.runs), sorted(overlap.short)])
        kept = rows.filter(lambda row: not overlap(row), new_fingerprint=name, desc="decontaminating")
        count = len(rows) - len(kept)
        log.info("decontaminate: %d of %d rows share %d words with an evaluation set", count, len(rows), RUN)
        return kept
    return rows.filter(overlap.is_clean)
