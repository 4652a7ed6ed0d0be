"""Rows in the shapes that people publish, turned into what the trainers take.

A dataset's shape is the first of these that its columns fit; a problem keeps its other columns, for the rewards:

| shape | columns | as demonstration | as problem |
|---|---|---|---|
| tokenised | `input_ids` | as it is | - |
| messages | `messages` [{role, content}] | `messages` | chat `prompt`: all before the last answer |
| conversations | `conversations` [{content}] or ShareGPT's [{from, value}]; `system` | `messages` | as above |
| prompt | `prompt`; `completion` or `solution` | `prompt`, `completion` | `prompt`, `solution` |
| Alpaca | `instruction`, `output`; `input`, `system` | chat `prompt`, `completion` | chat `prompt`, `solution` |
| question | `question`, `answer` | `prompt`, `completion` | `prompt`, `solution` |
| input | `input`; `target` | `prompt`, `completion` | `prompt`, `solution` |
| text | `text` | `text` | - |

For a problem, `prompt`, Alpaca, `question` and `input` go before the chats. Prompts are text or chat messages, as they
come. [{content}] has roles by turn parity: user, assistant, user ... Thinking that stands beside the content
(`reasoning_content`, `thinking`) goes into it, between <think> and </think>, because a chat template would drop it.

- `ShapedRows.recognise`: the shape of a dataset, or a DataError with the columns seen and the shapes known
- `ShapedRows.__call__`: one row; RowError if it breaks its shape: no answer, roles out of turn, no text
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from r1llama.data.lines import RowError
from r1llama.data.loading import DataError

ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant"}
ROLES |= {"gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
CHATS = ("messages", "conversations")
# shape -> the columns of the question and of the answer
PAIRS = {
    "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "question": ("question", "answer"),
    "input": ("input", "target"),
}
KNOWN = {
    "demonstration": "`prompt` and `completion`; `messages`; `conversations` (entries with `content`, `role` and "
    "`content`, or `from` and `value`); `instruction` and `output`; `question` and `answer`; `input` and `target`; "
    "`{text_field}`",
    "problem": "`prompt` and whatever the rewards need, such as `solution`; `instruction`, `question` or `input`; "
    "`messages` or `conversations`",
    "text": "`{text_field}`",
}


@dataclass(frozen=True)
class ShapedRows:
    """Turns raw rows of one shape into rows of one kind.

    Attributes:
        shape: A key of `PAIRS`, one of `CHATS`, or `text`.
        kind: `problem`, `demonstration` or `text`: what the rows become.
        text_field: The column with the text of the shape `text`.
        system_prompt: System message of every chat, in place of the row's own; a plain-text prompt becomes a chat.
            None leaves the rows as they are; empty takes the row's own away.
    """

    shape: str
    kind: str
    text_field: str = "text"
    system_prompt: str | None = None
    # Part of what caches are named after: rows that other code made are not taken for this one's.
    code: str = field(init=False, default=hashlib.sha256(Path(__file__).read_bytes()).hexdigest())

    @classmethod
    def recognise(cls, columns, kind: str, text_field: str = "text", system_prompt: str | None = None):
        """What turns rows with these columns into rows of this kind; None if they are tokenised already.

        Raises:
            DataError: No known shape fits.
        """
        columns = set(columns)
        if kind == "demonstration" and "input_ids" in columns:
            return None
        if kind == "problem":
            order = [*(shape for shape, (asks, _) in PAIRS.items() if asks in columns), *columns.intersection(CHATS)]
        elif kind == "demonstration":
            order = [shape for shape in CHATS if shape in columns]
            order += [shape for shape, pair in PAIRS.items() if columns.issuperset(pair)]
        else:
            order = []
        if text_field in columns and kind != "problem":
            order.append("text")
        if not order:
            raise DataError(
                f"the dataset has the columns {', '.join(sorted(columns))}, of which no {kind} can be made: rename "
                f"some, or set `task`. Known: {KNOWN[kind].format(text_field=text_field)}"
            )
        if system_prompt and order[0] == "text":
            raise DataError("`system_prompt` needs chat messages or prompts, but the dataset has plain text")
        return cls(order[0], kind, text_field, system_prompt)

    def __call__(self, row: dict) -> dict:
        """One row of the kind, with the same columns for every row of a dataset.

        Raises:
            RowError: The row breaks its shape.
        """
        if self.shape == "text":
            return {self.text_field: _text(row.get(self.text_field), self.text_field)}
        if self.shape in CHATS:
            messages = self._with_system(_messages(row.get(self.shape), self.shape, row.get("system")))
            check_turns(messages)
            answered = messages[-1]["role"] == "assistant"
            if self.kind == "problem":
                return {"prompt": messages[:-1] if answered else messages} | self._others(row, self.shape)
            if not answered:
                raise RowError(f"`{self.shape}` ends with a {messages[-1]['role']} message: no answer to learn")
            return {"messages": messages}
        asks, answers = PAIRS[self.shape]
        prompt = self._prompt(row, asks)
        if self.kind == "problem":
            if isinstance(prompt, list):
                check_turns(prompt)
            solution = self._solution(row, "solution" if self.shape == "prompt" else answers)
            return {"prompt": prompt} | solution | self._others(row, asks)
        if isinstance(prompt, str):
            return {"prompt": prompt, "completion": _text(row.get(answers), answers)}
        completion = row.get(answers)
        if not isinstance(completion, list):
            completion = [{"role": "assistant", "content": completion}]
        completion = _messages(completion, answers)
        check_turns(prompt + completion)
        if completion[-1]["role"] != "assistant":
            raise RowError(f"`{answers}` ends with a {completion[-1]['role']} message: no answer to learn")
        return {"prompt": prompt, "completion": completion}

    def _prompt(self, row: dict, asks: str) -> str | list[dict]:
        prompt = row.get(asks)
        if isinstance(prompt, list):
            return self._with_system(_messages(prompt, asks))
        prompt = _text(prompt, asks)
        if self.shape == "instruction":
            prompt += f"\n\n{_text(row['input'], 'input')}" if row.get("input") else ""
        elif not self.system_prompt:
            return prompt
        return self._with_system(_messages([{"role": "user", "content": prompt}], asks, row.get("system")))

    def _solution(self, row: dict, answers: str) -> dict:
        solution = row.get("solution", row.get(answers))
        if isinstance(solution, int | float) and not isinstance(solution, bool):
            solution = str(solution)
        return {"solution": solution} if "solution" in row or answers in row else {}

    def _others(self, row: dict, used: str) -> dict:
        made_of = {used, "prompt", "solution", "system", *(("input", "output") if used == "instruction" else ())}
        return {name: value for name, value in row.items() if name not in made_of}

    def _with_system(self, messages: list[dict]) -> list[dict]:
        if self.system_prompt is None:
            return messages
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return system + [message for message in messages if message["role"] != "system"]


def check_turns(messages: list[dict]) -> None:
    """Raise RowError unless a system message, if any, comes first, and then user and assistant in turn."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        raise RowError("there is no message but the system's")
    for number, message in enumerate(turns):
        due = ("user", "assistant")[number % 2]
        if message["role"] != due:
            place = number + 1 + len(messages) - len(turns)
            raise RowError(f"message {place} is by {message['role']} where one by {due} is due")


def _messages(entries, name: str, system=None) -> list[dict]:
    """Entries of any of the chat shapes as `[{"role", "content"}]`."""
    if not isinstance(entries, list) or not entries:
        raise RowError(f"`{name}` must be a list of messages, not {_seen(entries)}")
    messages = [{"role": "system", "content": _text(system, "system")}] if system else []
    for number, entry in enumerate(entries):
        where = f"{name}[{number}]"
        if not isinstance(entry, dict):
            raise RowError(f"`{where}` must be a message, not {_seen(entry)}")
        role = entry.get("role") or entry.get("from") or ("user", "assistant")[number % 2]
        if not isinstance(role, str) or role not in ROLES:
            raise RowError(f"`{where}`: the role {role!r} is none of {', '.join(ROLES)}")
        if entry.get("tool_calls"):
            raise RowError(f"`{where}` calls tools, which no stage trains")
        content = entry.get("content", entry.get("value"))
        content = entry.get("value") if content is None else content
        if isinstance(content, list):  # the parts of a multimodal message, where all of them are text
            content = "".join(_text(part.get("text") if isinstance(part, dict) else part, where) for part in content)
        if thinking := entry.get("reasoning_content") or entry.get("thinking"):
            content = f"<think>\n{_text(thinking, where).strip()}\n</think>\n{content or ''}"
        messages.append({"role": ROLES[role], "content": _text(content, where)})
    return messages


def _text(value, where: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise RowError(f"`{where}` must be text, not {_seen(value)}")


def _seen(value) -> str:
    return "empty" if value in (None, "", []) else f"the {type(value).__name__} {repr(value)[:60]}"
