r"""The outer shape of a mathematical value: a list, a set, a tuple, an interval, a union, a relation or an expression.

Computer algebra forgets shapes (math-verify 0.9.0 calls `(1,2)`, `1,2` and `\{1,2\}` the same), so they are compared
here, as written, and only the scalars inside are handed on.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .numeric import fold, parse_number, strip_latex
from .units import MULTIPLIERS, NOT_UNITS

Same = Callable[[str, str], bool | None]


class Shape(NamedTuple):
    r"""`kind` is "scalar", "list", "bracket" or "union"; `opening` and `closing` are a bracket's own characters."""

    kind: str
    items: tuple[str, ...]
    opening: str = ""
    closing: str = ""


_JOINING = re.compile(r"\s(?:or|and)\s|\\(?:lor|vee|land|wedge)(?![a-zA-Z])|(?<=\d)\s*;\s*(?=[-\d])", re.IGNORECASE)
_REWRITES = (
    (re.compile(r"\\(?:cdot|times|ast)(?![a-zA-Z])"), "*"),
    (re.compile(r"\\(?:leqslant|leq|le)(?![a-zA-Z])|≤"), r"\\leq "),
    (re.compile(r"\\(?:geqslant|geq|ge)(?![a-zA-Z])|≥"), r"\\geq "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\(?:varnothing)(?![a-zA-Z])|∅"), r"\\emptyset "),
    (re.compile(r"π"), r"\\pi "),
    (re.compile(r"∞"), r"\\infty "),
    (re.compile(r"∪"), r"\\cup "),
    (re.compile(r"(?<![a-zA-Z\\])(sqrt|pi|sin|cos|tan|cot|sec|csc|ln|log|exp|infty)(?![a-zA-Z])"), r"\\\1 "),
    (re.compile(r"√\s*(\d+|[a-z])"), r"\\sqrt{\1}"),
    (re.compile(r"\\sqrt\s*(\d|[a-z])(?![a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"\\(sin|cos|tan|ln|log)(\^\{?\d\}?)?\s*(?=[a-z0-9](?![a-z0-9]))"), r"\\\1\2 "),
    (re.compile(r"\s*\\mathrm\{d\}"), "d"),
    (re.compile(r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|\\prime)|′"), lambda m: "'" * max(1, m[0].count("prime"))),
    (re.compile(r"\\(begin|end)\s*\{bmatrix\}"), r"\\\1{pmatrix}"),
    (re.compile(r"\\\\\s*\[[\d.]+(?:pt|em|ex|mm|cm)\]"), r"\\\\"),
)  # fmt: skip
_SIGN = r"(?:<=|>=|<|>|\\leq|\\geq)"
_CHAIN = re.compile(
    rf"(?:(?P<low>[^<>=]*?)\s*(?P<below>{_SIGN})\s*)?[a-zA-Z]\s*(?:(?P<above>{_SIGN})\s*(?P<high>[^<>=]*?))?"
)
_ARRAY = re.compile(r"(?:\\left)?[\[(]\s*\\begin\{array\}\{[lcr]+\}(.*?)\\end\{array\}\s*(?:\\right)?[\])]", re.DOTALL)
_UNIT_AT_END = re.compile(
    r"(?<=[\w})])(?:\s|~|\\[,;:! ]|\\q?quad)*\\(?:text|mathrm|textrm|mbox|rm)\s*\{\s*(?P<unit>[^{}()\d^]+"
    r"(?:\^\{?[23]\}?)?)\}(?P<power>\^\{?[23]\}?)?\s*\.?$"
)
_BLANKS = re.compile(r"\s+")
_DEGREES = re.compile(r"(?!.*(?:sin|cos|tan|cot|sec|csc|pi)).*[a-z}]°")  # of a variable: sin x° is not sin x


def normalise(text: str) -> str:
    """Write a value in one spelling: ASCII operators, standard LaTeX commands, no spacing, no trailing unit."""
    text = fold(text).strip().strip("$").strip()
    if unit_at_end(text) is not None:
        text = _UNIT_AT_END.sub("", text)
    if "{array}" in text:
        text = _ARRAY.sub(r"\\begin{pmatrix}\1\\end{pmatrix}", text)
    text = strip_latex(text).rstrip(".").strip()
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _BLANKS.sub(" ", text).strip()
    return text[:-1] if _DEGREES.fullmatch(text) else text


def unit_at_end(text: str) -> str | None:
    r"""Return the unit that a symbolic value ends in, as written (`\text{ cm}^2`: "cm^2"), or None."""
    match = _UNIT_AT_END.search(text)
    if match is None or text.startswith("\\text"):
        return None
    if any(word in NOT_UNITS or word in MULTIPLIERS for word in match["unit"].lower().split()):
        return None
    return (match["unit"] + (match["power"] or "")).replace("{", "").replace("}", "").strip()


def compact(text: str) -> str:
    """Return `text` without spaces and without braces around single characters, for comparing spellings."""
    text = re.sub(r"\{([^{}\\])\}", r"\1", text)
    return re.sub(r"(?<=[a-zA-Z])\s+(?=[^a-zA-Z])|(?<![a-zA-Z])\s+|\s+(?=\\)|\*", "", text).strip()


def shape_of(text: str) -> Shape:
    """Return the outer `Shape` of a normalised value."""
    if parse_number(text) is not None:
        return Shape("scalar", (text,))
    pieces = _split(_JOINING.sub(",", f" {text} ").strip(), ",")
    if len(pieces) > 1:
        return Shape("list", pieces)
    pieces = _split(text, r"\cup")
    if len(pieces) > 1:
        return Shape("union", pieces)
    match = re.match(r"(\\\{|[(\[])(.*?)(\\\}|[)\]])$", text, re.DOTALL)
    if match and _wraps(text):
        items = _split(match[2], ",")
        if len(items) == 1:
            items = _split(match[2], ";")
        if len(items) > 1 or match[1] == r"\{":
            return Shape("bracket", tuple(i for i in items if i), match[1], match[3])
    return Shape("scalar", (text,))


def _split(text: str, separator: str) -> tuple[str, ...]:
    pieces, depth, start, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if text.startswith(separator, position) and depth == 0:
            pieces.append(text[start:position].strip())
            position = start = position + len(separator)
            continue
        if character == "\\" and text[position + 1 : position + 2] not in ("{", "}"):
            position += 1
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif text.startswith(r"\begin", position):
            depth += 1
        position += 1
    return (*pieces, text[start:].strip())


def _wraps(text: str) -> bool:
    """Tell whether the first bracket is closed by the last one only."""
    depth = 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0 and position < len(text) - 1:
                return False
    return depth == 0


def same_shape(answer: str, gold: str, same: Same) -> bool | None:
    """Compare two normalised values part by part.

    Args:
        same: compares two scalars; True, False, or None when it cannot tell.

    Returns:
        True, False, or None when some scalar could not be decided.
    """
    ours, theirs = shape_of(answer), shape_of(gold)
    kinds = {ours.kind, theirs.kind}
    if kinds == {"scalar", "bracket"}:
        ours, theirs = (shape_of(_interval(s.items[0])) if s.kind == "scalar" else s for s in (ours, theirs))
    elif kinds == {"list", "union"}:
        ours, theirs = (Shape("union", tuple(map(_interval, s.items))) for s in (ours, theirs))
    if theirs.kind == "scalar" and ours.kind == "scalar":
        return same(ours.items[0], theirs.items[0])
    is_set = theirs.kind == "bracket" and theirs.opening == r"\{"
    if ours.kind == "bracket" and ours.opening == r"\{" and (is_set or theirs.kind == "list"):
        return _unordered(_both_signs(ours), _both_signs(theirs), same)
    if ours.kind == "list" and (is_set or theirs.kind == "list"):
        return _unordered(ours.items, theirs.items, same)
    if ours.kind == theirs.kind == "union":
        return _unordered(ours.items, theirs.items, lambda a, b: same_shape(a, b, same))
    if ours.kind == theirs.kind == "bracket":
        if (ours.opening, ours.closing) != (theirs.opening, theirs.closing) or len(ours.items) != len(theirs.items):
            return False
        return _all([same_shape(a, b, same) for a, b in zip(ours.items, theirs.items, strict=True)])
    if r"\pm" in answer + gold:
        return _unordered(_both_signs(ours), _both_signs(theirs), same)
    return False


def _interval(text: str) -> str:
    """Write "2 <= x < 5" and "x > 3" as intervals, to compare them with one; other text stays as it is."""
    match = _CHAIN.fullmatch(text)
    if match is None or (match["low"] is None and match["high"] is None):
        return text
    low, below, above, high = match.group("low", "below", "above", "high")
    rising = {sign[:1] == "<" or sign.startswith(r"\leq") for sign in (below, above) if sign}
    if len(rising) > 1:
        return text  # 2 < x > 1
    if rising == {False}:
        low, below, above, high = high, above, below, low
    opening = "[" if below and "eq" in below else "("
    closing = "]" if above and "eq" in above else ")"
    low, high = low or r"-\infty", high or r"\infty"
    return f"{opening}{low}, {high}{closing}"


def _both_signs(shape: Shape) -> tuple[str, ...]:
    items = []
    for item in shape.items:
        items += (
            [item.replace(r"\pm", "+", 1).lstrip("+ "), item.replace(r"\pm", "-", 1)] if r"\pm" in item else [item]
        )
    return tuple(items)


def _all(results: Sequence[bool | None]) -> bool | None:
    if False in results:
        return False
    return None if None in results else True


def _unordered(ours: Sequence[str], theirs: Sequence[str], same: Same) -> bool | None:
    if len(ours) != len(theirs) or len(ours) > 32:
        return False
    left, undecided = list(ours), False
    for expected in theirs:
        results = [same(candidate, expected) for candidate in left]
        if True in results:
            left.pop(results.index(True))
        elif None in results:
            undecided = True
        else:
            return False
    return None if undecided else True
