"""What a reward is handed, as plain text.

TRL passes each completion either as a string or as a list of chat messages, and prompts likewise.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

Completion = str | Sequence[dict[str, Any]]

_STRUCK = re.compile(r"~~[^~]*~~|\\(?:[bx]?cancel|sout|st)\s*\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")
_STRUCK_HTML = re.compile(r"<(s|del|strike)>.{0,400}?</\1>", re.IGNORECASE | re.DOTALL)
_SHAPING = "(?:b|i|u|em|strong|mark|p|span|center|big|small|h[1-6]|div)"
_LOOK = re.compile(rf"(?<!\w)<{_SHAPING}>|</{_SHAPING}>(?!\w)|<br ?/?>", re.IGNORECASE)
_MATHS_LETTER = re.compile("[\U0001d400-\U0001d7ff]+")


def content_text(content: Any) -> str:
    """Return the text of a message's content: a string, a list of typed parts, or nothing."""
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return ""


def completion_text(completion: Completion) -> str:
    """Return what the model said last: the string itself, or the last assistant message of a conversation."""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, dict):
        return content_text(completion.get("content"))
    if isinstance(completion, (list, tuple)):
        for message in reversed(completion):
            if isinstance(message, dict) and message.get("role", "assistant") == "assistant":
                return content_text(message.get("content"))
    return ""


def prompt_text(prompt: Completion | None) -> str:
    """Return the whole prompt as text, messages joined by newlines."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, (list, tuple)):
        return "\n".join(content_text(m.get("content")) for m in prompt if isinstance(m, dict))
    return ""


def is_prefilled(prompt: Completion | None, tag: str = "<think>") -> bool:
    """Tell whether the prompt already opened `tag`, so that the completion starts inside it.

    Chat messages are seen before the template is applied: a tag that only the template adds is invisible here.
    """
    return prompt_text(prompt).rstrip().endswith(tag)


def aligned(values: Sequence | None, n: int) -> Sequence:
    """Return `values`, or `n` times None where the caller passed nothing (a reward called by hand)."""
    return [None] * n if values is None else values


def undressed(section: str) -> str:
    """Drop what is struck out, HTML that only changes the look, and mathematical fonts."""
    if not section.isascii():
        section = _MATHS_LETTER.sub(lambda m: unicodedata.normalize("NFKC", m[0]), section)
    if "<" in section:
        section = _LOOK.sub("", _STRUCK_HTML.sub(" ", section))
    if "~~" in section or "cancel" in section or "sout" in section:
        section = _STRUCK.sub(" ", section)
    return section
