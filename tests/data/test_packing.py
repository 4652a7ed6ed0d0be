"""Blocks are the documents, end to end, with nothing lost; a stream goes on exactly where it was."""

import json
from itertools import islice

import pytest
from datasets import Dataset, interleave_datasets, load_dataset
from torch.utils.data import DataLoader

from r1llama.data.loading import DataError
from r1llama.data.packing import BlockStream, Packer, decode_position, pack, tokenise
from r1llama.data.tokenizer import train_tokenizer

LENGTHS = (3, 70, 1, 20, 200, 0, 9)


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, and EOS."""
    return train_tokenizer([])


def documents(mark: str, count: int = 40) -> list[dict]:
    return [{"text": f"{mark}{i} " + "abcdefghij"[i % 10] * LENGTHS[i % len(LENGTHS)]} for i in range(count)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two .jsonl files of different documents."""
    folder = tmp_path_factory.mktemp("documents")
    for mark in "xy":
        rows = documents(mark)
        (folder / f"{mark}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(folder / f"{mark}.jsonl") for mark in "xy"]


def stream_of(files, tokenizer, mixed=False, **options):
    """A new stream, as a new process would make it."""
    rows = [load_dataset("json", data_files=file, split="train", streaming=True) for file in files]
    if mixed:
        rows = interleave_datasets(rows, probabilities=[0.7, 0.3], seed=1, stopping_strategy="all_exhausted")
    else:
        rows = rows[0]
    return BlockStream(rows, tokenizer, 16, window=options.pop("window", 7), **options)


def tokens_of(blocks):
    return [id for block in blocks for id in block["input_ids"]]


@pytest.mark.parametrize("length", [1, 2, 16, 1000])
def test_blocks_are_the_documents_end_to_end(tokenizer, length):
    texts = [row["text"] for row in documents("x")]
    lists = tokenise(texts, tokenizer)
    assert [ids[-1] for ids in lists] == [tokenizer.eos_token_id] * len(texts)
    packer = Packer(length)
    blocks = [block for ids in lists for block in packer.add(ids)]
    assert all(len(block["input_ids"]) == length == sum(block["seq_lengths"]) for block in blocks)
    assert tokens_of([*blocks, packer.rest]) == [id for ids in lists for id in ids]
    ends, place = set(), 0  # a document ends where its EOS is, and nowhere else but at the end of a block
    for block in blocks:
        for piece in block["seq_lengths"]:
            place += piece
            ends.add(place)
    eos = {i + 1 for i, id in enumerate(tokens_of(blocks)) if id == tokenizer.eos_token_id}
    assert ends == eos | set(range(length, len(blocks) * length + 1, length))


def test_a_dataset_is_packed_in_its_order(tokenizer):
    rows = Dataset.from_list(documents("x", 2500))
    blocks = pack(rows, tokenizer, 64)
    expected = [id for ids in tokenise(rows["text"], tokenizer) for id in ids]
    assert tokens_of(blocks) == expected[: len(expected) // 64 * 64]


def test_too_few_tokens_and_what_is_no_text_are_refused(tokenizer):
    with pytest.raises(DataError, match="2 documents have fewer than 64 tokens"):
        pack(Dataset.from_list([{"text": "a"}, {"text": ""}]), tokenizer, 64)
    with pytest.raises(DataError, match="a row holds None"):
        pack(Dataset.from_list([{"text": "a"}, {"text": None}]), tokenizer, 64)
    empty = BlockStream(Dataset.from_list([{"text": ""}]).to_iterable_dataset(), tokenizer, 4)
    with pytest.raises(DataError, match="no documents"):
        next(iter(empty))


def test_a_stream_begins_again_when_it_ends(files, tokenizer):
    lists = tokenise([row["text"] for row in documents("x")], tokenizer)
    once = [id for ids in lists for id in ids]
    blocks = list(islice(stream_of(files, tokenizer), 3 * len(once) // 16))
    assert tokens_of(blocks) == (once * 3)[: len(blocks) * 16]


@pytest.mark.parametrize("options", [{}, {"seed": 3}, {"mixed": True, "seed": 3}, {"seed": 3, "window": 1000}])
def test_a_resumed_stream_is_the_uninterrupted_one(files, tokenizer, options):
    """Stopped after every block of three epochs, and by a state that has been through JSON."""
    whole = list(islice(stream_of(files, tokenizer, **options), 420))
    for stop in (1, 16, 23, 137, 399):
        resumed = stream_of(files, tokenizer, **options)
        resumed.resume(json.loads(json.dumps(decode_position(whole[stop - 1]["position"]))), skip=2)
        assert tokens_of(islice(resumed, 5)) == tokens_of(whole[stop + 2 : stop + 7]), stop


def test_a_resumed_stream_reads_nothing_before_its_window(files, tokenizer):
    read = []
    rows = Dataset.from_list(documents("x")).to_iterable_dataset().map(lambda row: read.append(row["text"]) or row)
    position = list(islice(BlockStream(rows, tokenizer, 16, window=7), 100))[-1]["position"]
    read.clear()
    stream = BlockStream(rows, tokenizer, 16, window=7)
    stream.resume(decode_position(position))
    next(iter(stream))
    assert 7 <= len(read) <= 14
    assert read[0] != documents("x")[0]["text"]


def test_shuffling_keeps_the_documents_and_changes_with_the_epoch(files, tokenizer):
    texts = []
    stream = stream_of(files, tokenizer, seed=3)
    for place, window in islice(stream._windows(stream.start), 12):
        texts.append((place["epoch"], window))
    first, second = ([text for at, window in texts if at == epoch for text in window] for epoch in (0, 1))
    in_order = [row["text"] for row in documents("x")]
    assert sorted(first) == sorted(second) == sorted(in_order)
    assert len({tuple(first), tuple(second), tuple(in_order)}) == 3


def test_a_worker_process_resumes_too(files, tokenizer):
    whole, resumed = (stream_of(files, tokenizer, mixed=True, seed=3) for _ in range(2))
    blocks = list(islice(DataLoader(whole, batch_size=None, num_workers=1), 60))
    resumed.resume(decode_position(blocks[36]["position"]))
    assert tokens_of(islice(DataLoader(resumed, batch_size=None, num_workers=1), 23)) == tokens_of(blocks[37:])
