"""Comparing an extracted answer with the gold: exactly where both are numbers or words, else by computer algebra.

The order of business: shapes (`structure`), then scalars: numbers, equal spelling, words, and at last algebra, which
runs elsewhere (`algebra`). What algebra would get wrong or never finish is refused before.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from .declarations import closing_brace
from .number_words import clock_times
from .numeric import Number, fold, parse_number, strip_latex
from .statements import stated_number
from .structure import compact, normalise, same_shape, shape_of, unit_at_end
from .units import canonical_unit


class Verdict(NamedTuple):
    """`correct` is None when only algebra can tell; `reason` says how it was decided."""

    correct: bool | None
    reason: str


_PERCENT_ASKED = re.compile(r"percent|per cent|%|prozent|pourcent|por ciento|yüzde|процент|百分", re.IGNORECASE)


def gold_value(solution: object) -> str:
    r"""Return the value of a `solution` cell: after the last `####`, the last `\boxed{}` or `<answer>`, or all of it.

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


def names_several(gold: str) -> bool:
    """Tell whether the gold itself has more than one value, so that "x = 1 or x = 2" is no hedging."""
    return not gold.isalnum() and (r"\pm" in gold or "±" in gold or shape_of(normalise(gold)).kind != "scalar")


@lru_cache(maxsize=256)
def asks_for_percent(prompt: str) -> bool:
    """Tell whether a prompt asks for a percentage."""
    if not _PERCENT_ASKED.search(prompt):
        return False
    asked = re.split(r"(?<=[.!?])\s+", prompt.strip())
    return any(
        _PERCENT_ASKED.search(s) and re.search(r"\b(?:what|which|how|find|as a)\b|[?？]$", s, re.I) for s in asked
    )


def percent_expected(solution: object, prompt: str = "") -> bool:
    """Tell whether 42 and 42 % are the same answer here, because a percentage was asked for.

    GSM8K's golds drop the sign; its worked solutions write it just before the `####`.
    """
    worked, hashes, gold = str(solution).rpartition("####")
    if hashes and "%" in worked and re.search(rf"(?<![\d.,]){re.escape(gold.strip())}\s*%", worked):
        return True
    return bool(prompt) and asks_for_percent(prompt)


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


_SYMBOLS = re.compile(r"[\\^_=+*/|<>{}()\[\]]")
_LABEL = re.compile(
    r"^(?:(?:option|choice|answer|opción|opção|opzione|вариант|选项|la|el|le|die|the)\s*)?[(\[]?([A-Ja-j])[)\].:]*$",
    re.IGNORECASE,
)
_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(\d+),(\d{1,2}|\d{4,})(?![\d.,]*\d)")
_EARLY_HOUR = re.compile(r"0?(\d:[0-5]\d)")
_YES_NO = frozenset("no ja si sí да oui non sim yes не".split())  # noqa: SIM905
_LABELLED = re.compile(r"\(?([A-J])\)[\s~]*\S(?!.*(?<![\w(])\(?[A-J]\)?(?!\w))")


def plain_text(text: str) -> str:
    """Return `text` without LaTeX dress, quotes and final dots; words in lower case, single letters as they are."""
    text = re.sub(r"\s+", " ", strip_latex(fold(text)).replace("**", "").strip(" .\"'`*_$"))
    label = _LABEL.match(text)
    if label and (len(text) == 1 or not text.isalpha()):
        return label[1]
    # X+1 is not x+1, and the segment AB is not ab; but Paris is paris, and No is no.
    words = re.findall(r"[^\W\d_]+", text)
    spelled = (
        words and all(len(word) > 2 or word.casefold() in _YES_NO for word in words[:1]) and not _SYMBOLS.search(text)
    )
    return text.casefold() if spelled else text


def compare(answer: str, gold: str, percent: bool = False) -> Verdict:
    """Decide without computer algebra where possible.

    Args:
        answer: an extracted value.
        gold: the gold value, not empty.
        percent: a percentage was asked for.

    Returns:
        a `Verdict`; `correct` is None where `algebra.compare` has to decide.
    """
    expected = parse_number(gold)
    if expected is not None:
        return _against_number(answer, expected, percent)
    if plain_text(answer) == plain_text(gold) and plain_text(gold):
        return Verdict(True, "text")
    times = clock_times(gold)
    if len(times) == 1:
        said = strip_latex(fold(answer)).replace("{:}", ":")
        same = clock_times(said) == times and len(re.findall(r"\d+", said + gold)) == 4
        return Verdict(same, "time")
    if _early_hour(gold) and _early_hour(answer):
        return Verdict(_early_hour(answer) == _early_hour(gold), "time")
    label = _LABELLED.match(strip_latex(answer).strip())
    if label and re.fullmatch("[A-J]", plain_text(gold)):
        return Verdict(label[1] == plain_text(gold), "text")
    if not has_maths(gold):
        return Verdict(False, "text")
    if len(answer) > MAX_LENGTH:
        return Verdict(False, "too_large")
    units = [canonical_unit(unit_at_end(fold(text).strip(" $")) or "") for text in (answer, gold)]
    if all(units) and units[0] != units[1]:
        return Verdict(False, "unit")
    ours, theirs = unassigned(normalise(answer), normalise(gold))
    result = same_shape(ours, theirs, same_scalar)
    if result is None and too_large(answer):
        return Verdict(False, "too_large")
    return Verdict(result, "structure" if result is not None else "algebra")


def _early_hour(text: str) -> str:
    """Return "9:30" for "09:30" and "9:30", "" for anything else; later hours have one spelling only."""
    match = _EARLY_HOUR.fullmatch(strip_latex(fold(text)).replace("{:}", ":").replace(" ", "").strip("."))
    return match[1] if match else ""


def _against_number(answer: str, expected: Number, percent: bool) -> Verdict:
    number = stated_number(answer)
    if number is not None:
        return same_number(number, expected, percent)
    european = _DECIMAL_COMMA.sub(r"\1.\2", answer)  # "3,5" for a gold of 3.5
    if european != answer:
        number = stated_number(european)
        if number and (expected.value.denominator > 1 or number.unit):  # "42,0" may be two numbers
            return same_number(number, expected, percent)
        return Verdict(False, "number")
    return Verdict(False, "unevaluated" if re.search(r"\d", answer) else "not_a_number")


# ---- scalars -----------------------------------------------------------------------------------------------------

MAX_LENGTH = 1000  # characters of an answer that algebra will look at
MAX_DEPTH = 25  # nested braces
MAX_EXPONENT = 10_000
MAX_FACTORIAL = 1_000
_LETTER = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]")
_GREEK = r"\\(?:alpha|beta|gamma|delta|theta|phi|lambda|mu|omega|Gamma|Delta|Phi|Omega)(?![a-zA-Z])"
# What is named on the left of "=": a variable, a function of variables, a segment or area, a derivative, a measure.
_NAME = rf"""
    (?:[a-zA-Z]|{_GREEK}|\\Pr|\\(?:vec|mathbb|mathbf|hat)\s*\{{[a-zA-Z]\}})(?:_\s*(?:\{{[\w\s+-]*\}}|\w))?'{{0,3}}
        (?:(?:\^\s*\{{\s*-\s*1\s*\}})?\s*\(\s*(?:[a-zA-Z]|{_GREEK})(?:\s*,\s*[a-zA-Z])*\s*\))?
    |[fghFGHPE]'{{0,3}}\s*\(\s*-?\d+\s*\)
    |[A-Z]\s*\^\s*(?:\{{\s*(?:-\s*1|T)\s*\}}|T)(?=\s*=\s*\\begin)
    |(?:\\triangle|\\angle)?\s*[A-Z]{{2,4}}|\[[A-Z]{{3,4}}\]|\|[A-Z]{{2}}\||\\overline\s*\{{[A-Z]{{2}}\}}|\\angle\s*\w+
    |\\frac\s*\{{(?:d|\\partial\s)(?:\^\{{?\d\}}?)?\s*[a-zA-Z]\}}\s*\{{(?:d|\\partial\s)\s*[a-zA-Z](?:\^\{{?\d\}}?)?\}}
    |\\frac\s*\{{d\}}\s*\{{d\s*[a-zA-Z]\}}\s*(?:\([^=()]*\)|\[[^=\[\]]*\])
    |\([a-z](?:\s*,\s*[a-z])+\)
    |(?i:area|volume|perimeter|circumference|length|width|height|distance|radius|diameter|slope|probability|sum|total)
"""
_ASSIGNMENT = re.compile(rf"^\s*(?:{_NAME})\s*(?:=|\\in(?![a-z]))\s*(?=[^=]+$)", re.VERBOSE)
_RELATION = re.compile(r"=|<|>|\\(?:leq|geq|neq|ne|in|equiv|approx)(?![a-zA-Z])")
_UNEVALUATED = re.compile(r"\\(?:int|sum|prod|lim|binom|dbinom|tbinom|det)(?![a-zA-Z])|\\frac\s*\{d\}")
_ELLIPSIS = re.compile(r"\\[lcd]?dots|\.\.\.|…")
_SUBSCRIPT = re.compile(r"_\s*\{?\s*(\w+)")
_FORBIDDEN = re.compile(
    r"__|[\"`@;&#~\x00]|\\(?:def|let|input|include|write|read|openin|newcommand|phantom|llap|rlap)(?![a-z])"
)
_MATRIX = re.compile(r"\\begin\{[a-z]*matrix\}|\\begin\{array\}")


def has_maths(text: str) -> bool:
    """Tell whether `text` could be more than words."""
    return bool(
        re.search(r"[\\^_=+*/(){}\[\]|<>≤≥√π∞×÷±:,]|\d|^-?[a-zA-Z]$|^-?[a-z]{1,2}(?:\s*-\s*[a-z]{1,2})+$", text)
    )


def same_scalar(answer: str, gold: str) -> bool | None:
    """Compare two normalised scalars; None where only algebra can tell."""
    expected = parse_number(gold)
    if expected is not None:
        return _against_number(answer, expected, percent=False).correct
    if compact(answer) == compact(gold):
        return True
    if _ELLIPSIS.search(answer + gold) or (_FORBIDDEN.search(answer) and not _MATRIX.search(gold)):
        return False
    answer, gold = unassigned(answer, gold)
    if compact(answer) == compact(gold):
        return True
    expected = parse_number(gold)
    if expected is not None:
        return _against_number(answer, expected, percent=False).correct
    if not has_maths(gold) or not answer.strip() or bool(_RELATION.search(answer)) != bool(_RELATION.search(gold)):
        return False
    if answer.count("'") != gold.count("'"):  # algebra forgets that f' is not f
        return False
    if _symbols(answer) != _symbols(gold) or _subscripts(answer) != _subscripts(gold):
        return False
    if _UNEVALUATED.search(answer) and not _UNEVALUATED.search(gold):
        return False
    if bool(_MATRIX.search(answer)) != bool(_MATRIX.search(gold)) or ":" in answer + gold:
        return False
    return None


def unassigned(answer: str, gold: str) -> tuple[str, str]:
    """Drop "x =" where one side has it and the other does not, or where both name the same variable."""
    ours, theirs = _ASSIGNMENT.match(answer), _ASSIGNMENT.match(gold)
    if ours and theirs and compact(ours[0]) == compact(theirs[0]):
        return answer[ours.end() :], gold[theirs.end() :]
    if ours and not _RELATION.search(gold):
        return answer[ours.end() :], gold
    if theirs and not _RELATION.search(answer):
        return answer, gold[theirs.end() :]
    return answer, gold


_CONSTANTS = re.compile(
    r"\\(?:frac|sqrt|cdot|times|left|right|text|mathrm|begin|end|[pbv]?matrix|pi|infty|leq|geq|ln|log|circ|sin|cos|tan"
    r"|cot|sec|csc|exp|pm|cup|cap|emptyset|overline|bar|in|neq|binom|quad|over)$"
)


def _subscripts(text: str) -> set[str]:
    return set(_SUBSCRIPT.findall(re.sub(r"\\log\s*_\s*(?:\{\w+\}|\w)", "", text)))


def _symbols(text: str) -> set[str]:
    """Return the variables of an expression, case and Greek letters kept apart."""
    text = re.sub(r"\\(?:begin|end)\{\w+\}|_\s*(?:\{\w+\}|\w)", " ", text)
    return {s for s in _LETTER.findall(text) if not (s.startswith("\\") and _CONSTANTS.match(s))}


def too_large(text: str) -> bool:
    """Tell whether evaluating `text` could take for ever: towers of powers, huge exponents, factorials, nesting."""
    if len(text) > MAX_LENGTH or re.search(r"\d{200}", text):
        return True
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return True
    if re.search(r"\^\s*\{?[^{}+\-*/ ]*\^\s*\{?[^{}+\-*/ ]*\^", text) or re.search(
        r"!\s*\)?\s*\}?\s*\^|!\s*\)\s*!|!!", text
    ):
        return True
    exponents = re.findall(r"\^\s*(?:\{\s*-?\s*\(?(\d+)|-?(\d+))", text)
    if any(int((a or b)[:20]) > MAX_EXPONENT for a, b in exponents) or re.search(r"\)\s*!|\}\s*!", text):
        return True
    return any(int(n[:20]) > MAX_FACTORIAL for n in re.findall(r"(\d+)\s*!", text))
