"""The parser that tells thoughts from answers, in vLLM's own machinery for requests."""

import itertools
import random
from types import SimpleNamespace

import pytest

from r1llama.data.chat import template_path
from tests.training.conftest import byte_tokenizer

pytest.importorskip("vllm")

from vllm.parser.abstract_parser import DelegatingParser

from r1llama.serving.thinking import ThinkParser

REQUEST = SimpleNamespace(include_reasoning=True, tools=None, tool_choice=None)
PIECES = ("<think>", "</think>", "<", "</", "think>", "<thin", "a", "\n", " b")
OPEN, CLOSED, FREE = True, False, None  # what the prompt leaves


class Parser(DelegatingParser):
    reasoning_parser_cls = ThinkParser


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template_path("r1llama").read_text()
    return tokenizer


def prompt(tokenizer, think, messages=({"role": "user", "content": "?"},), **keywords):
    keywords = {"add_generation_prompt": True} | keywords
    return tokenizer.apply_chat_template(list(messages), enable_thinking=think, return_dict=True, **keywords)[
        "input_ids"
    ]


def whole(tokenizer, think, text):
    parser = Parser(tokenizer, chat_template_kwargs={"enable_thinking": think})
    parser.is_reasoning_end(prompt(tokenizer, think))
    thought, answer, _ = parser.parse(text, REQUEST)
    return thought or "", answer or ""


def streamed(tokenizer, think, tokens, lag=0):
    """As the server does it; `lag`: characters that it holds back, as for a stop string."""
    parser, ids = Parser(tokenizer), prompt(tokenizer, think)
    texts = [tokenizer.decode(tokens[: i + 1]) for i in range(len(tokens))]
    seen, thought, answer = "", "", ""
    for i, token in enumerate(tokens):
        is_last = i == len(tokens) - 1
        text = texts[i] if is_last else texts[i][: max(len(texts[i]) - lag, len(seen))]
        delta = parser.parse_delta(text[len(seen) :], [token], REQUEST, ids, finished=is_last)
        seen = text
        if delta:
            thought, answer = thought + (delta.reasoning or ""), answer + (delta.content or "")
    return thought, answer


@pytest.mark.parametrize(
    ("think", "text", "expected"),
    [
        (FREE, "<think>\n1+1\n</think>\n\n2", ("\n1+1\n", "\n\n2")),
        (FREE, "just 2", ("", "just 2")),
        (FREE, " \n<think>a</think>b", ("a", "b")),
        (FREE, "Well, <think>a</think>b", ("a", "Well, b")),
        (FREE, "<think>cut", ("cut", "")),
        (FREE, "a</think>b", ("", "a</think>b")),
        (OPEN, "1+1\n</think>\n\n2", ("1+1\n", "\n\n2")),
        (OPEN, "<think>1</think>2", ("1", "2")),
        (OPEN, "cut", ("cut", "")),
        (CLOSED, "2", ("", "2")),
        (CLOSED, "</think> is a tag", ("", "</think> is a tag")),
    ],
)
def test_thoughts_and_answers(tokenizer, think, text, expected):
    assert whole(tokenizer, think, text) == expected
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert streamed(tokenizer, think, tokens) == expected
    assert streamed(tokenizer, think, tokens, lag=6) == expected


@pytest.mark.parametrize("think", [FREE, OPEN, CLOSED])
def test_a_stream_adds_up_to_the_whole(tokenizer, think):
    chance = random.Random(0)
    for count, _ in itertools.product((1, 2, 3, 5, 8), range(60)):
        text = "".join(chance.choices(PIECES, k=count)) + "."
        tokens = tokenizer.encode(text, add_special_tokens=False)
        expected = whole(tokenizer, think, text)
        assert streamed(tokenizer, think, tokens) == expected, text
        assert streamed(tokenizer, think, tokens, lag=chance.randrange(12)) == expected, text


def test_a_tag_that_never_closes_is_text(tokenizer):
    assert streamed(tokenizer, FREE, tokenizer.encode("1 <")) == ("", "1 <")


def test_the_prompt_decides_by_the_turn_under_way(tokenizer):
    turns = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "<think>\na\n</think>\n\n1"},
        {"role": "user", "content": "and?"},
    ]
    parser = ThinkParser(tokenizer)
    for think in (FREE, OPEN, CLOSED):
        assert parser.end_of(prompt(tokenizer, think, turns)) is think
    cut = [*turns[:1], {"role": "assistant", "content": "<think>\ncut off"}, turns[2]]
    assert parser.end_of(prompt(tokenizer, FREE, cut)) is FREE
    begun = [*turns[:1], {"role": "assistant", "content": "<think>\nLet me"}]
    keywords = {"add_generation_prompt": False, "continue_final_message": True}
    assert parser.end_of(prompt(tokenizer, FREE, begun, **keywords)) is OPEN


def test_without_the_prompt_the_chat_template_decides(tokenizer):
    for think in (FREE, OPEN, CLOSED):
        parser = Parser(tokenizer, chat_template_kwargs={"enable_thinking": think})
        thought, _, _ = parser.parse("a</think>b", REQUEST)
        assert (thought == "a") == (think is OPEN)


def test_tokens_of_the_thought_are_counted(tokenizer):
    for think, text in ((OPEN, "abc</think>de"), (FREE, "<think>abc</think>de"), (OPEN, "abc")):
        parser = Parser(tokenizer, chat_template_kwargs={"enable_thinking": think})
        assert parser.count_reasoning_tokens(tokenizer.encode(text)) == 3
    assert Parser(tokenizer).count_reasoning_tokens(tokenizer.encode("abc")) == 0
