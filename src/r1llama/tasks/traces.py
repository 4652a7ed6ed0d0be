"""Traces: questions with the reasoning and the answer of a teacher, in columns of their own.

- `demonstration`: a raw row as `prompt` and `completion`, for distillation

A raw row has one column of each line, the first that it has:

    question   question, problem, prompt, instruction, input
    reasoning  reasoning, reasoning_content, thinking
    answer     answer, content, response, output, solution
"""

QUESTION = ("question", "problem", "prompt", "instruction", "input")
REASONING = ("reasoning", "reasoning_content", "thinking")
ANSWER = ("answer", "content", "response", "output", "solution")


def demonstration(row: dict, system_prompt: str = "") -> dict:
    """A raw row as a chat prompt, and one assistant message with the reasoning and the answer inside the tags.

    Args:
        row: One of each of the columns above; the question may be a list of chat messages.
        system_prompt: The system message; empty for none.

    Returns:
        `{"prompt": [messages], "completion": [one assistant message]}`. Tags that are there already stay as they are.

    Raises:
        KeyError: None of the columns of a kind is there.
        ValueError: The reasoning or the answer is empty.
    """
    question, reasoning, answer = (_first(row, names) for names in (QUESTION, REASONING, ANSWER))
    turns = question if isinstance(question, list) else [{"role": "user", "content": question}]
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    content = f"{_inside(reasoning, 'think')}\n{_inside(answer, 'answer')}"
    return {"prompt": [*system, *turns], "completion": [{"role": "assistant", "content": content}]}


def _first(row: dict, names: tuple[str, ...]):
    for name in names:
        if name in row:
            if not row[name]:
                raise ValueError(f"`{name}` is empty in {str(row)[:200]}")
            return row[name]
    raise KeyError(" or ".join(names))


def _inside(text: str, tag: str) -> str:
    text = text.strip()
    return text if text.startswith(f"<{tag}>") else f"<{tag}>\n{text}\n</{tag}>"
