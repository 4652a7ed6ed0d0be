"""The one number that a short text states: "42", "x = 42", "6 * 7 = 42", "She has 42 apples", "forty-two"."""

import re
from fractions import Fraction

from .arithmetic import evaluate
from .number_words import number_from_words
from .numeric import Number, fold, parse_number, strip_latex
from .phrases import COPULA_SUFFIX
from .units import MODIFIERS_AFTER, MODIFIERS_BEFORE, NOT_UNITS, canonical_unit

MAX_LENGTH = 400  # characters

# Chinese, Japanese and Korean set numbers among their characters without spaces; other letters must keep off.
_OTHER_LETTER = r"[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_TOKEN = re.compile(
    rf"(?<!{_OTHER_LETTER})(?<![.,^])-?(?:[$€£¥]\s?-?)?(?:\d{{1,3}}(?:,\d{{3}})+(?![\d,])|\d+)?(?:\.\d+|(?<=\d))"
    rf"(?:/\d+)?(?!{_OTHER_LETTER}|[_^/]|[.,]\d)"
    r"(?:\s?%|\s?°|\s(?:percent|hundred|thousand|million|billion|trillion|dozen)\b)?"
)
# What a plain sentence is made of. Brackets, operators, quotes and comparison signs belong to something else.
_INLINE = re.compile(r"\\[()\[\]]")
_SPOKEN_EQUALS = re.compile(r"(.{3,80}?)\s+(?:is|equals|makes|gives)\s+(\S+(?:\s\w+){0,2}?)\.?$", re.IGNORECASE)
_MARKS = r"\u064b-\u0652\u0900-\u0903\u093a-\u094f\u0964"  # vowel signs, which are no letters to `re`
_PLAIN_SENTENCE = re.compile(rf"(?:[^\W_]|[ ,.'$€£¥%°:\-{_MARKS}]|(?<=\d)/(?=\d)|\n)*$")
_LEFT_SIDE = re.compile(r"[^,;<>≤≥≠|?\"#&@`]*$")


def stated_number(text: str) -> Number | None:
    """Return the number of a text that states exactly one, else None.

    In a chain of equations it is the last value, if every other part is the same value, plain arithmetic that gives
    it, or a name. In a sentence it must be the only number, unqualified ("at least 42", "42 squared" state no 42).
    """
    number = parse_number(text)
    if number is not None or len(text) > MAX_LENGTH:
        return number
    text = _INLINE.sub(" ", COPULA_SUFFIX.sub("", strip_latex(fold(text)).strip(" ।"))).strip()
    number = parse_number(text)
    if number is not None:
        return number
    if "=" in text:
        return _of_equation(text)
    unsigned = re.sub(r"^(?:minus|negative)\s", "", text, flags=re.IGNORECASE)
    words = number_from_words(unsigned)
    if words is None and " " in unsigned:
        spelled, _, unit = unsigned.rpartition(" ")
        words = number_from_words(spelled) if unit.isalpha() and unit.lower() not in NOT_UNITS else None
    if words is not None:
        return Number(Fraction(-words if re.match(r"minus|negative", text, re.IGNORECASE) else words))
    return _of_sentence(text) or _of_spoken_equation(text)


def _of_spoken_equation(text: str) -> Number | None:
    match = _SPOKEN_EQUALS.match(text)
    value = parse_number(match[2]) if match else None
    result = evaluate(_spell_operators(match[1])) if match else None
    return value if value is not None and result is not None and result.value == value.value else None


def _spell_operators(text: str) -> str:
    for word, sign in (
        ("multiplied by", "*"),
        ("divided by", "/"),
        ("times", "*"),
        ("plus", "+"),
        ("minus", "-"),
        ("x", "*"),
    ):
        text = re.sub(rf"(?<=[\d)])\s*{word}\s*(?=[\d(])", sign, text, flags=re.IGNORECASE)
    return text


def _of_equation(text: str) -> Number | None:
    *left, last = text.split("=")
    value = parse_number(last)
    if value is None:
        value = _of_sentence(last.strip()) if re.match(r"\s*[-$\d]", last) else None
    if value is None or not all(part.strip() for part in left[1:]):
        return None
    for part in left:
        if not _LEFT_SIDE.match(part) or part.endswith("!"):  # "x != 42"
            return None
        known = parse_number(part)
        result = evaluate(part.replace("$", "").replace(",", ""))
        if known is not None and known.value != value.value:
            return None
        if known is None and result is not None and result.value != value.value:
            return None
        if known is None and result is None and re.search(r"\d\s*$", part) and not re.search(r"[-+*/x×÷·\\^(]", part):
            return None  # "x is 41 = 42"
    return value


def _of_sentence(text: str) -> Number | None:
    text = text.replace("\u2019", "'").replace("(", " ").replace(")", " ") if text.count("(") <= 1 else text
    if not _PLAIN_SENTENCE.match(text):
        return None
    tokens = list(_TOKEN.finditer(text))
    if len(tokens) != 1:
        return None
    token = tokens[0]
    before, after = text[: token.start()].strip().lower(), text[token.end() :].strip().lower()
    if any(c.isdigit() for c in before + after) or before.endswith("-") or after.startswith(("-", "'", ":")):
        return None
    if MODIFIERS_BEFORE.search(before) or MODIFIERS_AFTER.match(after) or "below zero" in after:
        return None
    number = parse_number(token[0].strip())
    if number is None or number.unit or number.percent:
        return number
    following = re.findall(r"[^\W\d_]+|°", after.removeprefix("in "))
    units = (canonical_unit(" ".join(following[:n])) for n in (3, 2, 1) if len(following) >= n)
    return number._replace(unit=next(filter(None, units), ""))
