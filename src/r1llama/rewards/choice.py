"""Rewards for answers that are one of a few: a letter, an integer, an exact text."""

import re
from collections.abc import Sequence

from .extraction import Answer, extract_answer
from .grading import gold_value, plain_text
from .numeric import fold, parse_number, strip_latex
from .text import Completion, aligned, completion_text, is_prefilled, prompt_text

_OPTION = re.compile(
    r"(?:(?:la|el|le|die|o|a)\s+(?=[(\[]?[A-Z][)\].]*\s*$))?"
    r"(?:(?:the\s+)?(?:correct\s+|right\s+|best\s+|final\s+)?(?:option|choice|answer|opción|opção|opzione|вариант|选项)\s*(?:is|:)?\s*)?"
    r"[(\[]?([A-Z])(?:[)\].:]|(?=\s+is\s+(?:the\s+)?(?:correct|right)|$))\s*(.*)$",
    re.IGNORECASE | re.DOTALL,
)
_OTHER_OPTION = re.compile(r"(?<![\w'])\(?[A-J](?:\)|(?![\w'’]))")
_ANNOUNCED = re.compile(
    r"(?:option|choice)\s+(?:is\s+)?\(?([A-Z])\)?(?=[\s.,:!]|$)(?!\s+(?:or|and|is\s+(?:not|wrong|incorrect)))"
)


def chosen_option(answer: Answer, text: str) -> str | None:
    """Return the capital letter that an answer chooses, or None where it chooses none or several."""
    if answer.value is None:
        letters = _ANNOUNCED.findall(text) if answer.reason == "no_answer" else []
        return letters[0].upper() if len(letters) == 1 else None
    value = strip_latex(answer.value.replace("**", "")).strip(" .\n\"'$")
    if not value.isascii() and re.match(r"\(?[^\x00-\x7f]", value):
        return None  # homoglyphs are no letters of the alphabet
    match = _OPTION.match(value)
    if match is None:
        return None
    # A bare lower-case word ("a cat") is text; a bare letter or "b)" is a choice.
    if match[1].islower() and len(value) > 3:
        return None
    return None if _OTHER_OPTION.search(match[2]) and len(match[2]) < 40 else match[1].upper()


def multiple_choice_reward(
    completions: Sequence[Completion],
    solution: Sequence,
    prompts: Sequence[Completion] | None = None,
    **kwargs,
) -> list[float | None]:
    """1.0 for the right letter ("B", "(B)", "B. Paris"), 0.0 for another or several, None if the gold is no letter."""
    rewards: list[float | None] = []
    for completion, cell, prompt in zip(completions, solution, aligned(prompts, len(completions)), strict=True):
        gold = plain_text(gold_value(cell)).upper()
        if not re.fullmatch(r"[A-Z]", gold):
            rewards.append(None)
            continue
        text = completion_text(completion)
        answer = extract_answer(text, "lenient", is_prefilled(prompt), prompt_text(prompt))
        rewards.append(float(chosen_option(answer, text) == gold))
    return rewards


def exact_match_reward(
    completions: Sequence[Completion],
    solution: Sequence,
    prompts: Sequence[Completion] | None = None,
    **kwargs,
) -> list[float | None]:
    """1.0 when the answer is the gold, character by character but for outer white space; None without a gold.

    The answer is the one `<answer>` block, else all that follows the thoughts.
    """
    rewards: list[float | None] = []
    for completion, cell, prompt in zip(completions, solution, aligned(prompts, len(completions)), strict=True):
        gold = "" if cell is None else str(cell).strip()
        text = completion_text(completion)
        said = whole_answer(text, is_prefilled(prompt))
        rewards.append(None if not gold else float(said == gold))
    return rewards


def whole_answer(text: str, prefilled: bool = False) -> str | None:
    """Return the one `<answer>` block as written, else what follows the thoughts; None if there is no one answer."""
    end = text.rfind("</think>")
    if end < 0 and (prefilled or "<think>" in text):
        return None
    section = text[end + len("</think>") :] if end >= 0 else text
    tags = re.findall(r"</?answer>", section)
    if not tags:
        return None if "<think>" in section else section.strip()
    if tags != ["<answer>", "</answer>"]:
        return None
    return section.partition("<answer>")[2].partition("</answer>")[0].strip()


def integer_reward(
    completions: Sequence[Completion], prompts: Sequence[Completion] | None = None, **kwargs
) -> list[float | None]:
    """1.0 when the answer is marked and an integer ("-42", "1,042"), whichever; 0.0 otherwise.

    Source of the idea: willccbb's GRPO demo, whose `isdigit` also takes `4²` and refuses `-42`.
    """
    rewards: list[float | None] = []
    for completion, prompt in zip(completions, aligned(prompts, len(completions)), strict=True):
        answer = extract_answer(completion_text(completion), "strict", is_prefilled(prompt))
        number = parse_number(fold(answer.value)) if answer.value else None
        rewards.append(float(number is not None and number.decimals == 0 and not number.percent))
    return rewards
