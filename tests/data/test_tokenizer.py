"""The tokenizer: tags, digits, padding, any text there and back, byte-identical training."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from r1llama.data.tokenizer import MIN_VOCAB_SIZE, TAGS, check_tokenizer, compression, train_tokenizer

TEXTS = ["the cat sat on the mat, the cat sat", "3+8=11", "Straße, 東京, 🦙🦙", "1234567890 " * 20] * 5
BYTES = train_tokenizer([])
MERGED = train_tokenizer(TEXTS, vocab_size=300)
both = pytest.mark.parametrize("tokenizer", [BYTES, MERGED], ids=["bytes", "merged"])


def test_sizes():
    assert len(BYTES) == MIN_VOCAB_SIZE
    assert MIN_VOCAB_SIZE < len(MERGED) <= 300
    assert sorted(MERGED.get_vocab().values()) == list(range(len(MERGED)))
    with pytest.raises(ValueError, match="vocab_size=100"):
        train_tokenizer([], vocab_size=100)


@both
@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_one_token_that_decoding_keeps(tokenizer, tag):
    text = f"x{tag}y {tag} z"
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids(tag)) == 2
    assert len(tokenizer(tag)["input_ids"]) == 1
    assert tag not in tokenizer.all_special_tokens
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@both
def test_every_digit_is_one_token(tokenizer):
    assert len(tokenizer("1234567890")["input_ids"]) == 10
    assert not [token for token in tokenizer.get_vocab() if len(token) > 1 and set(token) & set("0123456789")]


@both
def test_padding_is_neither_end_nor_unknown(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.unk_token is None
    batch = tokenizer(["7", "789"], padding=True)
    assert batch["attention_mask"] == [[0, 0, 1], [1, 1, 1]]


@given(st.text())
@settings(deadline=None)
def test_any_text_there_and_back(text):
    for tokenizer in (BYTES, MERGED):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


AWKWARD = [
    "",
    " ",
    "  two  spaces \n\n\t",
    "don't .  , !",
    "\x00\x7f\u200b\ufeff",
    "e\u0301 é",
    "👩‍👩‍👧",
    "<think",
    "< think>",
    "١٢٣",
]


@both
@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_there_and_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_training_twice_gives_the_same_bytes(tmp_path):
    MERGED.save_pretrained(tmp_path / "first")
    train_tokenizer(iter(TEXTS), vocab_size=300).save_pretrained(tmp_path / "second")
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


@both
def test_saving_and_loading_changes_nothing(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "3+8=11 <think>a  b</think>\n東"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.pad_token, loaded.eos_token, loaded.padding_side) == (
        tokenizer.pad_token,
        tokenizer.eos_token,
        "left",
    )
    assert len(loaded) == len(tokenizer)


def broken(**changes):
    tokenizer = train_tokenizer([], 300, changes.pop("chat_template", None))
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def special_tag():
    tokenizer = train_tokenizer([])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    return tokenizer


def spelled_tags():
    backend = Tokenizer.from_str(train_tokenizer([]).backend_tokenizer.to_str())
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in TAGS]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|end_of_text|>", pad_token="<|pad|>"
    )


def lossy():
    tokenizer = train_tokenizer([])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    return tokenizer


BROKEN = {
    "pad token is <|end_of_text|>.*not the eos": lambda: broken(pad_token="<|end_of_text|>"),
    "pad token is <|pad|>.*not the unk": lambda: broken(unk_token="<|pad|>"),
    "pad token is None": lambda: broken(pad_token=None),
    "no eos_token": lambda: broken(eos_token=None),
    "<think> is not one token": spelled_tags,
    "<think> is a special token": special_tag,
    "comes back as": lossy,
    "no special token: a model could not stop": lambda: broken(
        chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_tokenizer_that_training_cannot_use_is_refused(message):
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        check_tokenizer(BROKEN[message]())


def test_a_sound_tokenizer_is_not_refused():
    for tokenizer in (BYTES, MERGED):
        check_tokenizer(tokenizer)


def test_compression():
    measured = compression(BYTES, ["abc", "é🦙"])
    assert measured == {"documents": 2, "characters_per_token": 5 / 9, "bytes_per_token": 1.0}
    assert compression(MERGED, TEXTS)["characters_per_token"] > 1
