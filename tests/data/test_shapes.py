"""Each published shape of rows, and what the trainers get of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1llama.data.lines import RowError
from r1llama.data.loading import DataError
from r1llama.data.shapes import CHATS, PAIRS, ShapedRows


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def shaped(row, kind, **keywords):
    return ShapedRows.recognise(row, kind, **keywords)(row)


CHAT = {"messages": [user("q"), assistant("a")]}
# raw row, as demonstration, as problem; None where there is none
GOLDEN = {
    "prompt": (
        {"prompt": "q", "completion": "a", "level": 3},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "completion": "a", "level": 3},
    ),
    "chat prompt": (
        {"prompt": [user("q")], "completion": [assistant("a")]},
        {"prompt": [user("q")], "completion": [assistant("a")]},
        {"prompt": [user("q")], "completion": [assistant("a")]},
    ),
    "problem": ({"prompt": "q", "solution": 7}, None, {"prompt": "q", "solution": "7"}),
    "messages": (CHAT, CHAT, {"prompt": [user("q")]}),
    "thinking beside the content": (
        {"messages": [user("q"), assistant("a") | {"reasoning_content": "why\n"}]},
        {"messages": [user("q"), assistant("<think>\nwhy\n</think>\na")]},
        {"prompt": [user("q")]},
    ),
    "parts of text": (
        {"messages": [user([{"type": "text", "text": "q"}, {"type": "text", "text": "?"}]), assistant("a")]},
        {"messages": [user("q?"), assistant("a")]},
        {"prompt": [user("q?")]},
    ),
    "parity": (
        {"conversations": [{"content": "q"}, {"content": "a"}, {"content": "r"}, {"content": "b"}]},
        {"messages": [user("q"), assistant("a"), user("r"), assistant("b")]},
        {"prompt": [user("q"), assistant("a"), user("r")]},
    ),
    "parity from Arrow, which fills in": (
        {"conversations": [{"content": "q", "role": None}, {"content": "a", "role": None}]},
        CHAT,
        {"prompt": [user("q")]},
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        {"messages": [system("s"), user("q"), assistant("a")]},
        {"prompt": [system("s"), user("q")]},
    ),
    "conversations with roles": (
        {"conversations": [system("s"), user("q"), assistant("a")], "id": 5},
        {"messages": [system("s"), user("q"), assistant("a")]},
        {"prompt": [system("s"), user("q")], "id": 5},
    ),
    "Alpaca": (
        {"instruction": "i", "input": "x", "output": "o"},
        {"prompt": [user("i\n\nx")], "completion": [assistant("o")]},
        {"prompt": [user("i\n\nx")], "solution": "o"},
    ),
    "Alpaca without input": (
        {"instruction": "i", "input": "", "output": "o", "system": "s"},
        {"prompt": [system("s"), user("i")], "completion": [assistant("o")]},
        {"prompt": [system("s"), user("i")], "solution": "o"},
    ),
    "input": (
        {"input": "q", "target": "a", "language": "en"},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "solution": "a", "target": "a", "language": "en"},
    ),
    "input alone": ({"input": "q", "language": "en"}, None, {"prompt": "q", "language": "en"}),
    "question": (
        {"question": "q", "answer": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "solution": "a", "answer": "a"},
    ),
    "text": ({"text": "words"}, {"text": "words"}, None),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    row, demonstration, problem = GOLDEN[name]
    for kind, expected in (("demonstration", demonstration), ("problem", problem)):
        if expected is None:
            with pytest.raises(DataError, match=f"the dataset has the columns .*, of which no {kind} can be made"):
                shaped(row, kind)
        else:
            assert shaped(row, kind) == expected


def test_kind_text_takes_text_only():
    assert shaped({"story": "words", "id": 1}, "text", text_field="story") == {"story": "words"}
    for row in (CHAT, {"prompt": "q", "completion": "a"}):
        with pytest.raises(DataError, match="no text can be made"):
            shaped(row, "text")


def test_tokenised_rows_stay_as_they_are():
    assert ShapedRows.recognise(["input_ids", "labels"], "demonstration") is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [assistant("a")]}, "message 1 is by assistant where one by user is due"),
        ({"messages": [user("q"), user("q"), assistant("a")]}, "message 2 is by user where one by assistant is due"),
        ({"messages": [user("q"), system("s"), assistant("a")]}, "message 2 is by system"),
        ({"messages": [system("s")]}, "no message but the system's"),
        ({"messages": [user("q")]}, "`messages` ends with a user message: no answer to learn"),
        ({"messages": []}, "`messages` must be a list of messages, not empty"),
        ({"messages": "q"}, "must be a list of messages, not the str 'q'"),
        ({"messages": [user("q"), "a"]}, r"`messages\[1\]` must be a message, not the str 'a'"),
        ({"messages": [user("q"), {"role": "tool", "content": "a"}]}, r"`messages\[1\]`: the role 'tool' is none of"),
        ({"messages": [user("q"), assistant(None)]}, r"`messages\[1\]` must be text, not empty"),
        ({"messages": [user("q"), assistant(" ")]}, r"`messages\[1\]` must be text, not the str ' '"),
        ({"messages": [user("q"), assistant([{"type": "image"}])]}, r"`messages\[1\]` must be text"),
        ({"messages": [user("q"), assistant("") | {"tool_calls": [{}]}]}, "calls tools"),
        ({"conversations": [{"content": "q"}, {"content": "a"}, {"content": "r"}]}, "ends with a user message"),
        ({"prompt": "q", "completion": ""}, "`completion` must be text, not empty"),
        ({"prompt": None, "completion": "a"}, "`prompt` must be text, not empty"),
        ({"prompt": 7, "completion": "a"}, "`prompt` must be text, not the int 7"),
        ({"prompt": [user("q")], "completion": [user("a")]}, "message 2 is by user"),
        ({"input": "q", "target": None}, "`target` must be text, not empty"),
        ({"text": 3}, "`text` must be text, not the int 3"),
    ],
)
def test_a_row_that_breaks_its_shape(row, said):
    with pytest.raises(RowError, match=said):
        shaped(row, "demonstration")


def test_a_system_prompt_replaces_the_rows_own_and_makes_chats_of_text():
    rows = ShapedRows.recognise(["messages"], "demonstration", system_prompt="new")
    expected = {"messages": [system("new"), user("q"), assistant("a")]}
    assert rows(CHAT) == rows({"messages": [system("old"), *CHAT["messages"]]}) == expected
    plain = {"prompt": "q", "completion": "a"}
    expected = {"prompt": [system("new"), user("q")], "completion": [assistant("a")]}
    assert shaped(plain, "demonstration", system_prompt="new") == expected
    assert shaped(plain, "demonstration", system_prompt="") == plain
    assert shaped({"messages": [system("old"), *CHAT["messages"]]}, "demonstration", system_prompt="") == CHAT
    with pytest.raises(DataError, match="`system_prompt` needs chat messages or prompts"):
        shaped({"text": "words"}, "demonstration", system_prompt="new")


words = st.text(st.characters(categories=["L", "N"]), min_size=1)


@given(st.lists(words, min_size=1))
@settings(deadline=None, max_examples=40)
def test_parity_gives_every_turn_its_role(turns):
    row = {"conversations": [{"content": turn} for turn in turns]}
    if len(turns) % 2:
        with pytest.raises(RowError):
            shaped(row, "demonstration")
        turns = turns[:-1]
        row = {"conversations": row["conversations"][:-1]}
    if turns:
        messages = shaped(row, "demonstration")["messages"]
        assert [message["content"] for message in messages] == turns
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(turns) // 2)
        roles = [{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in messages]
        assert shaped({"conversations": roles}, "demonstration")["messages"] == messages


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | words | st.just(" "),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner, max_size=3)
    ),
    max_leaves=8,
)


shapes = st.sampled_from([*CHATS, *PAIRS, "text"])


@given(shape=shapes, kind=st.sampled_from(["demonstration", "problem"]), row=st.data())
@settings(deadline=None, max_examples=60)
def test_whatever_a_row_holds_it_becomes_a_row_or_a_row_error(shape, kind, row):
    columns = [shape, *PAIRS.get(shape, ())]
    row = row.draw(st.fixed_dictionaries({}, optional={name: anything for name in [*columns, "input", "system"]}))
    try:
        made = ShapedRows(shape, "demonstration" if shape == "text" else kind)(row)
    except RowError:
        return
    for name in ("prompt", "completion", "messages"):
        for message in made[name] if isinstance(made.get(name), list) else []:
            assert message.keys() == {"role", "content"}
            assert message["role"] in ("system", "user", "assistant")
            assert isinstance(message["content"], str)
            assert message["content"].strip()
