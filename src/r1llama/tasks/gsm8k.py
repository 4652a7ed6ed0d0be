"""GSM8K: grade-school word problems whose written solutions end in `#### number`.

- `problem`: a raw row as `prompt` and `solution`, for GRPO and evaluation
- `demonstration`: a raw row as `prompt` and `completion`, for supervised fine-tuning

A raw row is `{"question": str, "answer": str}`, as in `openai/gsm8k` (config `main`). The grader is
`r1llama.rewards.accuracy_reward`.
"""

import re

SYSTEM_PROMPT = (
    "Solve the problem. First think step by step between <think> and </think>, "
    "then give only the final number between <answer> and </answer>.\n"
    "Example: <think>\n2 bags hold 3 apples each: 2 * 3 = 6.\n</think>\n<answer>6</answer>"
)


def problem(row: dict, system_prompt: str = SYSTEM_PROMPT) -> dict:
    """A raw row as a chat prompt and its solution.

    Args:
        row: `{"question", "answer"}`.
        system_prompt: The system message; empty for none.

    Returns:
        `{"prompt": [messages], "solution": "1080"}`, the number without thousands separators.

    Raises:
        ValueError: The answer has no `####` line.
    """
    return {"prompt": _messages(row, system_prompt), "solution": _split(row)[1]}


def demonstration(row: dict, system_prompt: str = SYSTEM_PROMPT) -> dict:
    """A raw row as a chat prompt and the human solution inside the tags.

    Args and errors as `problem`. The calculator notes `<<48/2=24>>` are left out.

    Returns:
        `{"prompt": [messages], "completion": [one assistant message]}`.
    """
    steps, number = _split(row)
    steps = re.sub(r"<<.*?>>", "", steps)
    content = f"<think>\n{steps}\n</think>\n<answer>{number}</answer>"
    return {
        "prompt": _messages(row, system_prompt),
        "completion": [{"role": "assistant", "content": content}],
    }


def _messages(row: dict, system_prompt: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": row["question"]}]


def _split(row: dict) -> tuple[str, str]:
    steps, mark, number = row["answer"].rpartition("####")
    if not mark:
        raise ValueError(f"no `####` line in the GSM8K answer {row['answer']!r}")
    return steps.strip(), number.strip().replace(",", "")
