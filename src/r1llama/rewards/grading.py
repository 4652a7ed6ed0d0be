"""Comparing an extracted answer with the gold: exactly where both are numbers or words, else by computer algebra."""

import re
from fractions import Fraction
from typing import NamedTuple

from .extraction import closing_brace, sole_number
from .numeric import Number, fold, parse_number, strip_latex


class Verdict(NamedTuple):
    """`correct` is None when nothing could be decided; `reason` says how it was decided, or why not."""

    correct: bool | None
    reason: str


_PERCENT_ASKED = re.compile(r"percent|per cent|%", re.IGNORECASE)


def gold_value(solution: object) -> str:
    r"""Return the value of a `solution` cell: after the last `####`, in the last `\boxed{}` or `<answer>`, or all of it.

    A cell that is no text is written as text; None gives "".
    """
    if solution is None:
        return ""
    text = str(solution).strip()
    if "####" in text:
        return text.rpartition("####")[2].strip()
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start >= 0:
        start = text.index("{", start) + 1
        end = closing_brace(text, start)
        return text[start:end].strip() if end is not None else ""
    if "<answer>" in text and text.endswith("</answer>"):
        return text[text.rindex("<answer>") + len("<answer>") : -len("</answer>")].strip()
    return text


def percent_expected(solution: object, prompt: str = "") -> bool:
    """Tell whether 42 and 42 % are the same answer here, because a percentage was asked for.

    GSM8K's golds drop the sign; its worked solutions write it just before the `####`.
    """
    worked, hashes, gold = str(solution).rpartition("####")
    if hashes and re.search(rf"{re.escape(gold.strip())}\s*%", worked):
        return True
    asked = re.split(r"(?<=[.!?])\s+", prompt.strip())
    return any(_PERCENT_ASKED.search(s) for s in asked if "?" in s and re.search(r"what|which|how|find|as a", s, re.I))


def same_number(answer: Number, gold: Number, percent: bool = False) -> Verdict:
    """Compare two exact numbers, with their percent signs and units.

    A bare number and a percentage are the same only where `percent` were asked for; two different measures never are.
    """
    if answer.unit and gold.unit and answer.unit != gold.unit:
        return Verdict(False, "unit")
    ours, theirs = answer.value, gold.value
    if answer.percent != gold.percent and percent:
        ours, theirs = (n.value * 100 if n.percent else n.value for n in (answer, gold))
    if ours == theirs:
        if not answer.reduced and theirs.denominator == 1 and gold.reduced:
            return Verdict(False, "unevaluated")
        return Verdict(True, "number")
    if gold.decimals is None and gold.value.denominator > 1 and (answer.decimals or 0) >= 6:
        # A long decimal stands for a fraction that has no finite one, as in math-verify (six places).
        places = 10 ** (answer.decimals or 0)
        return Verdict(Fraction(round(gold.value * places), places) == ours, "rounded")
    return Verdict(False, "number")


_LABEL = re.compile(r"^(?:option|choice|answer)?\s*[(\[]?([A-Ja-j])[)\].:]*$", re.IGNORECASE)


def plain_text(text: str) -> str:
    """Return `text` without LaTeX dress, quotes and final dots; words in lower case, single letters as they are."""
    text = strip_latex(fold(text)).replace("**", "").strip(" .\"'`*_$")
    text = re.sub(r"\s+", " ", text)
    label = _LABEL.match(text)
    if label and (len(text) == 1 or not text.isalpha()):
        return label[1]
    return text.casefold() if len(text) > 1 else text


def compare_fast(answer: str, gold: str, percent: bool = False) -> Verdict | None:
    """Decide without computer algebra, or return None when that is not possible.

    Args:
        answer: an extracted value.
        gold: the gold value, not empty.
        percent: a percentage was asked for.
    """
    expected = parse_number(gold)
    if expected is not None:
        number = sole_number(answer)
        if number is not None:
            verdict = same_number(number, expected, percent)
            if not verdict.correct and expected.decimals and re.fullmatch(r"-?\d+,\d+", answer.strip()):
                decimal_comma = parse_number(answer.strip().replace(",", "."))  # "3,5" for a gold of 3.5
                return same_number(decimal_comma, expected) if decimal_comma else verdict
            return verdict
        return None if _has_maths(answer) else Verdict(False, "not_a_number")
    if plain_text(answer) == plain_text(gold) and plain_text(gold):
        return Verdict(True, "text")
    if not _has_maths(gold):
        return Verdict(False, "text")
    return None


def _has_maths(text: str) -> bool:
    return bool(re.search(r"[\\^_=+*/(){}\[\]|<>≤≥√π∞×÷]|\d\s*[a-zA-Z]|^-?[a-zA-Z]$", text))
