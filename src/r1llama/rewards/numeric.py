"""Exact reading of written numbers: the fast path that decides most answers without a computer algebra system.

A number is read only when the whole text is one number, with at most a currency, a percent sign or a unit. Whatever
is not certain is None, never a guess: `1,08,0`, `4²`, `42i`, `41 or 42` are not numbers here.
"""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from .units import CURRENCIES, MULTIPLIERS, NOT_UNITS, canonical_unit

MAX_LENGTH = 400  # characters; longer texts are no plain number (and int() of huge strings is slow)
MAX_EXPONENT = 300  # of ten, in scientific notation


class Number(NamedTuple):
    """A written number.

    `value` is exact, and already divided by 100 when `percent`. `unit` is a canonical measure or currency, or "".
    `decimals` counts the digits after the point, None for a fraction. `reduced` is False for `84/2` and `2/4`.
    """

    value: Fraction
    unit: str = ""
    percent: bool = False
    decimals: int | None = 0
    reduced: bool = True


# Minus-like and digit-group-like characters in one pass; other scripts' decimal digits are added by `_fold`.
_FOLD = {
    **dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"), "-"),
    **dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f\u3000"), " "),
    **dict.fromkeys(map(ord, "\u2019\u02bc"), "'"),
    **dict.fromkeys(map(ord, "\u200b\u200e\u200f\u2060\ufeff\u202a\u202b\u202c\u2066\u2067\u2068\u2069"), "\x00"),
    ord("\uff0c"): ",", ord("\u066c"): ",", ord("\uff0e"): ".", ord("\u066b"): ".", ord("\uff05"): "%",
    ord("\u066a"): "%", ord("\uff0b"): "+", ord("\uff04"): "$", ord("\u2044"): "/", ord("\u2215"): "/",
    ord("\u00d7"): "\\times", ord("\u00b7"): "\\cdot", ord("\u22c5"): "\\cdot", ord("\uff1d"): "=",
}  # fmt: skip
_CHEERS = "✅✔✓☑🎉🎊😀😊🙂👍🏆⭐\ufe0f"  # at the ends; crosses and thumbs down say something else
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
           "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}  # fmt: skip


def fold(text: str) -> str:
    """Write minus signs, group separators, percent signs and decimal digits of any script in ASCII.

    Only true decimal digits are folded: superscripts and circled digits stay, since `4²` is not 42.
    Invisible characters at the ends are dropped; inside they remain, as NUL, and spoil the number.
    """
    if text.isascii():
        return text
    folded = text.translate(_FOLD).strip("\x00 \t\n" + _CHEERS)
    return "".join(
        c if c.isascii() else " " + _VULGAR[c] if c in _VULGAR else str(unicodedata.decimal(c)) if c.isdecimal() else c
        for c in folded
    )


_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?:[ '_]\d{3})+|\d+)"
_POWER_OF_TEN = r"(?:[eE]([+-]?\d+)|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*\{?\s*([+-]?\d+)\s*\}?)"
_SIGN = r"(?P<sign>[-+]|minus\s|negative\s)?\s*"
_CURRENCY = r"(?P<currency>US\$|R\$|[$€£¥₹₺₽₩]|(?:USD|EUR|GBP|Rs\.?)\s)?\s*"
_AFFIX = rf"{_SIGN}(?P<before>%)?{_CURRENCY}(?P<sign2>-)?\s*"
_AFTER = r"(?P<after>(?:\s*[^\W\d_].*|\s*[%°€£¥₹$¢₺₽₩].*|\s+.*)?)$"

_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3}){1,5}$")
_PLAIN = re.compile(r"[-+]?\d{1,18}$")
_DECIMAL = re.compile(rf"{_AFFIX}(?P<int>{_INTEGER})?(?:\.(?P<frac>\d*))?(?:{_POWER_OF_TEN})?{_AFTER}", re.IGNORECASE)
_TEN = re.compile(
    rf"{_SIGN}(?P<before>(?!))?(?P<currency>(?!))?(?P<sign2>(?!))?10\s*\^\s*\{{?\s*(?P<exp>[+-]?\d{{1,3}})\s*\}}?$"
)
_EUROPEAN = re.compile(
    rf"{_AFFIX}(?P<int>\d{{1,3}}(?:(?:\.\d{{3}})+(?=,)|(?:\.\d{{3}}){{2,}}))(?:,(?P<frac>\d+))?{_AFTER}"
)
_REPEATING = re.compile(rf"{_AFFIX}(?P<int>{_INTEGER})?\.(?P<frac>\d*)(?:\\overline|\\bar)?[({{](?P<rep>\d+)[)}}]$")
_FRACTION = re.compile(rf"{_AFFIX}(?:(?P<whole>\d+)\s+)?(?P<num>{_INTEGER})\s*/\s*(?P<den>{_INTEGER}){_AFTER}")
_LATEX_FRACTION = re.compile(
    rf"{_AFFIX}(?P<whole>\d+)?\s*\\frac\s*(?:\{{\s*(?P<num>-?\s*{_INTEGER})\s*\}}|(?P<num1>\d))"
    rf"\s*(?:\{{\s*(?P<den>-?\s*{_INTEGER})\s*\}}|(?P<den1>\d)){_AFTER}"
)

_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname|boldsymbol|emph|bf|rm"
    r"|underline)\*?\s*\{([^{}]*)\}"
)
_SPACING = re.compile(r"\\(?:left|right|displaystyle|limits|bigl?|bigr|Bigl?|Bigr|!)(?![a-zA-Z])")
_THIN = re.compile(r"(?<!\\)\\[,;: ]|\\(?:quad|qquad)(?![a-zA-Z])|~")
_DEGREE = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])")
_APPROXIMATELY = re.compile(
    r"^(?:\\approx|\\sim|≈|~|(?:approximately|approx\.|about|around|roughly|exactly)\s)\s*", re.IGNORECASE
)
_BASE_TEN = re.compile(r"(?<=\d)_(?:\{10\}|10)$")
_QUOTES = {"“": "”", '"': '"', "'": "'", "‘": "’", "「": "」", "«": "»", "`": "`"}
_COMMA_POINT = re.compile(r"(?<![\d.,}])(\d+)\{,\}(\d{1,2}|\d{4,})(?!\d|\{,\})")  # 2{,}5 but not 1{,}234
_LAST_SPACE = re.compile(r"\s\\$")
_FONT = re.compile(r"\\(?:bf|rm|it|tt|sf|cal)(?![a-zA-Z])")
_FRAC = re.compile(r"\\[dtc]frac(?![a-zA-Z])")


def strip_latex(text: str) -> str:
    """Remove LaTeX that changes the look of a value and not its meaning: spacing, text commands, delimiters."""
    text = _LAST_SPACE.sub("", text.strip())
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening + closing):
            inner = text[len(opening) : -len(closing)]
            if opening not in inner and closing not in inner:
                text = inner.strip()
    if "\\" in text or "{" in text or "~" in text:
        for _ in range(3):
            text = _TEXT_COMMAND.sub(r" \1 ", text)
        text = _COMMA_POINT.sub(r"\1.\2", text).replace("{,}", ",")
        text = _THIN.sub(" ", _SPACING.sub("", _FONT.sub(" ", text)))
        text = _FRAC.sub(r"\\frac", _DEGREE.sub("°", text))
        text = text.replace(r"\$", "$").replace(r"\%", "%").replace(r"\pounds", "£").replace(r"\euro", "€")
        text = text.strip()
        while text.startswith("{") and text.endswith("}") and "{" not in text[1:-1]:
            text = text[1:-1].strip()
    return text.strip()


def parse_number(text: str) -> Number | None:
    """Read `text` as exactly one number.

    Args:
        text: at most 400 characters; LaTeX, unicode digits and minus signs, thousands separators, currency signs,
            percent, one trailing dot and a unit are understood.

    Returns:
        the `Number`, or None when the text is anything else.
    """
    return None if len(text) > MAX_LENGTH else _parse(text)


# One answer is read when it is found, when answers are compared with each other, and with the gold.
@lru_cache(maxsize=4096)
def _parse(text: str) -> Number | None:
    if _PLAIN.match(text):
        return Number(Fraction(int(text)))
    if _GROUPED.match(text):
        return Number(Fraction(int(text.replace(",", ""))))
    text = strip_latex(fold(text).strip())
    text = _APPROXIMATELY.sub("", _BASE_TEN.sub("", text.rstrip(";, ")))
    if text[:1] in _QUOTES and text.endswith(_QUOTES[text[0]]):
        text = text[1:-1].strip()
    if text.endswith((".", "。")) and not text.endswith(".."):
        text = text[:-1].rstrip()
    while text.startswith("(") and text.endswith(")") and "(" not in text[1:]:
        text = text[1:-1].strip()
    if not text or not any(c.isdigit() for c in text):
        return None
    for pattern, read in _READERS:
        match = pattern.match(text)
        if match:
            number = read(match)
            number = _finish(number, match) if number is not None else None
            if number is not None:
                return number
    return None


def _digits(grouped: str) -> int:
    return int(re.sub(r"\D", "", grouped))


def _read_decimal(match: re.Match[str]) -> Number | None:
    whole, frac = match["int"], match["frac"]
    if not whole and not frac:
        return None
    value = Fraction(_digits(whole or "0"))
    if frac:
        value += Fraction(int(frac), 10 ** len(frac))
    decimals = len(frac or "")
    exponent = next((g for g in match.groups()[-3:-1] if g), None) if match.re is _DECIMAL else None
    if exponent is not None:
        if abs(int(exponent)) > MAX_EXPONENT:
            return None
        value *= Fraction(10) ** int(exponent)
        decimals = max(0, decimals - int(exponent))
    return Number(value, decimals=decimals)


def _read_ten(match: re.Match[str]) -> Number:
    exponent = int(match["exp"])
    return Number(Fraction(10) ** exponent, decimals=max(0, -exponent))


def _read_repeating(match: re.Match[str]) -> Number:
    frac, rep = match["frac"], match["rep"]
    value = Fraction(_digits(match["int"] or "0")) + Fraction(int(frac or "0"), 10 ** len(frac))
    return Number(value + Fraction(int(rep), (10 ** len(rep) - 1) * 10 ** len(frac)), decimals=None)


def _read_fraction(match: re.Match[str]) -> Number | None:
    groups = match.groupdict()
    over, under = groups["num"] or groups["num1"], groups["den"] or groups["den1"]
    num, den = _digits(over), _digits(under)
    if den == 0:
        return None
    negative = over.lstrip().startswith("-") != under.lstrip().startswith("-")
    value = Fraction(-num if negative else num, den)
    if match["whole"]:
        if negative or num >= den:  # 3 -1/2 and 3 5/2 are not mixed numbers
            return None
        value += int(match["whole"])
    return Number(value, decimals=None, reduced=Fraction(num, den).denominator == den and den > 1)


_READERS = (
    (_DECIMAL, _read_decimal),
    (_TEN, _read_ten),
    (_FRACTION, _read_fraction),
    (_LATEX_FRACTION, _read_fraction),
    (_EUROPEAN, _read_decimal),
    (_REPEATING, _read_repeating),
)


def _finish(number: Number, match: re.Match[str]) -> Number | None:
    """Apply sign, percent, multiplier word and unit; None where what follows the number is not one of these."""
    value = number.value
    signs = [s for s in (match["sign"], match["sign2"]) if s and s.strip() != "+"]
    if len(signs) == 2:
        return None
    if signs:
        value = -value
    unit = CURRENCIES.get((match["currency"] or "").strip().rstrip(".").lower(), "")
    percent = bool(match["before"])
    after = (match.groupdict().get("after") or "").strip().rstrip(".").strip()
    if after:
        tail = re.match(r"(%|percent\b|per cent\b|pct\b)\s*", after, re.IGNORECASE)
        if tail:
            percent, after = True, after[tail.end() :]
        word = re.match(r"(hundred|thousand|million|billion|trillion|dozen|k(?=\s|$))\s*", after, re.IGNORECASE)
        if word and not percent:
            value, after = value * MULTIPLIERS[word[1].lower()], after[word.end() :]
    if after:
        tail_unit = _unit(after, spaced=match["after"][:1].isspace())
        if tail_unit is None or (unit and tail_unit and tail_unit != unit):
            return None
        unit = unit or tail_unit
    return number._replace(value=value / 100 if percent else value, unit=unit, percent=percent)


def _unit(text: str, spaced: bool) -> str | None:
    """Return the canonical unit, "" for a word that is no measure ("apples"), None for what cannot be a unit."""
    unit = canonical_unit(text)
    if unit:
        return unit
    words = text.replace("-", " ").replace("/", " ").split()
    if not spaced or not 1 <= len(words) <= 5:
        return None
    for word in words:
        bare = word.strip("()")
        if not bare.isalpha() or bare.lower() in NOT_UNITS or (len(bare) < 3 and not canonical_unit(bare)):
            return None
    return ""
