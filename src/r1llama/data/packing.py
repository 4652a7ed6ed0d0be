"""Documents as blocks of tokens, all of the same length: nothing is padded, cut off or thrown away.

    Packer       token lists in, blocks out; what does not fill a block waits for the next document
    pack         a whole dataset -> a dataset of blocks
    BlockStream  an endless stream of blocks, which tells with each block how to go on after it

A block is `{"input_ids": [...], "seq_lengths": [...]}`: its tokens, and how many of them belong to each document in
turn (TRL's column). A document that outgrows its block goes on in the next one, as a text that starts there.
"""

import json
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from .loading import DataError

BATCH = 1000  # documents that are tokenised together


class Packer:
    """Cuts documents, laid end to end, into blocks.

    Args:
        length: Tokens of a block.
        rest: An unfinished block to begin with: what `rest` of another packer was.
    """

    def __init__(self, length: int, rest: dict | None = None):
        self.length = length
        self.rest = {"input_ids": [], "seq_lengths": []} | (rest or {})

    def add(self, ids: list[int]) -> Iterator[dict]:
        """Take one document; yields each block that it completes."""
        start = 0
        while start < len(ids):
            piece = ids[start : start + self.length - len(self.rest["input_ids"])]
            start += len(piece)
            self.rest["input_ids"] += piece
            self.rest["seq_lengths"].append(len(piece))
            if len(self.rest["input_ids"]) == self.length:
                block, self.rest = self.rest, {"input_ids": [], "seq_lengths": []}
                yield block


def tokenise(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Each text as the tokenizer begins it, ended with EOS; empty texts are left out.

    Raises:
        DataError: Something is no text.
    """
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"pretraining learns from texts, but a row holds {text!r}: mend or drop it")
    texts = [text for text in texts if text]
    eos = tokenizer.eos_token_id
    lists = tokenizer(texts, verbose=False)["input_ids"] if texts else []
    return [ids if ids[-1] == eos else [*ids, eos] for ids in lists]


def pack(rows: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, text_field: str = "text") -> Dataset:
    """The blocks of a dataset, in its order, cached as `datasets` caches. The last tokens, too few for a block, are
    left out.

    Raises:
        DataError: There are too few tokens for one block.
    """
    packer = Packer(length)

    def add(batch):
        blocks = [block for ids in tokenise(batch[text_field], tokenizer) for block in packer.add(ids)]
        return {name: [block[name] for block in blocks] for name in packer.rest}

    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer
    blocks = rows.map(
        add,
        batched=True,
        batch_size=BATCH,
        remove_columns=rows.column_names,
        features=Features({name: List(Value("int32")) for name in packer.rest}),
        new_fingerprint=Hasher.hash([rows._fingerprint, vocabulary, tokenizer.eos_token_id, length, text_field]),
        desc="packing",
    )
    if not len(blocks):
        raise DataError(
            f"{len(rows)} documents have fewer than {length} tokens together, which is `max_length`: not one block"
        )
    return blocks


class BlockStream(torch.utils.data.IterableDataset):
    """Blocks of a stream of documents, which begins again when it ends.

    Each block has one more entry, `position`: what `resume` takes to go on right after it. It travels with the block,
    so that it does not matter how many blocks were fetched ahead. To go on, the stream returns to where its present
    window began, without reading what lies before, and drops the blocks that it has already given.

    Args:
        rows: The documents. Whatever shuffles by a buffer must not stand before: it forgets the buffer when it
            resumes.
        tokenizer: Its EOS ends each document.
        length: Tokens of a block.
        text_field: The column of the texts.
        window: Documents that are read and tokenised together.
        seed: Shuffles the documents within a window; None: in order.
    """

    def __init__(self, rows: IterableDataset, tokenizer, length: int, text_field="text", window=BATCH, seed=None):
        self.rows, self.tokenizer, self.length, self.text_field = rows, tokenizer, length, text_field
        self.window, self.seed = window, seed
        # The beginning of a window (what `rows` says about itself, and the unfinished block), and the blocks since
        self.start = {"rows": None, "epoch": 0, "window": 0, "rest": None, "blocks": 0}

    def resume(self, position: dict, skip: int = 0) -> None:
        """Go on after a block.

        Args:
            position: The block's.
            skip: Further blocks to leave out: those that other processes took.
        """
        self.start = position | {"blocks": position["blocks"] + skip}

    def __iter__(self) -> Iterator[dict]:
        start = dict(self.start)
        packer, given = Packer(self.length, start["rest"]), start.pop("blocks")
        for place, documents in self._windows(start):
            written = json.dumps(place | {"rest": packer.rest})  # the same for all blocks of the window
            blocks = 0
            for ids in tokenise(documents, self.tokenizer):
                for block in packer.add(ids):
                    blocks += 1
                    if given:
                        given -= 1
                    else:
                        yield block | {"position": [written, blocks]}

    def _windows(self, start: dict) -> Iterator[tuple[dict, list[str]]]:
        """`(where it begins, its documents in the order of training)` of each window, without end."""
        self.rows.load_state_dict(start["rows"])
        epoch, number = start["epoch"], start["window"]
        state = start["rows"]
        while True:
            is_empty = state is None  # so far, if this pass begins at its beginning
            self.rows.set_epoch(epoch)
            rows = iter(self.rows)
            while documents := [row[self.text_field] for row in islice(rows, self.window)]:
                is_empty = is_empty and not any(documents)
                if self.seed is not None:
                    order = np.random.default_rng([self.seed, epoch, number]).permutation(len(documents))
                    documents = [documents[i] for i in order]
                yield {"rows": state, "epoch": epoch, "window": number}, documents
                state, number = self.rows.state_dict(), number + 1
            if is_empty:
                raise DataError("the stream has no documents")
            epoch, number, state = epoch + 1, 0, None


def decode_position(position: list) -> dict:
    """What `BlockStream.resume` takes, from a block's `position`."""
    written, blocks = position
    return json.loads(written) | {"blocks": blocks}
