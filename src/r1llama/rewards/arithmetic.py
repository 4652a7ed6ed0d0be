"""Plain arithmetic on exact fractions: + - * / and parentheses over non-negative integers, and nothing else.

No powers, no floor division, no unary minus, no decimals: each of those was an exploit of a countdown grader that
used `eval` (`2**3`, `7//2`, `1.5*2`, towers of powers that never end).
"""

import re
from fractions import Fraction
from typing import NamedTuple

MAX_TOKENS = 200
MAX_DIGITS = 18


class Arithmetic(NamedTuple):
    """`value` of an expression and the `numbers` it uses, in order."""

    value: Fraction
    numbers: list[int]


_TOKEN = re.compile(r"\s*(?:([0-9]+)|([-+*/()]))")
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})
_COMMANDS = re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z])|\\div(?![a-zA-Z])|\\(?:left|right)(?![a-zA-Z])|\\[,;! ]")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_RANK = {"+": 1, "-": 1, "*": 2, "/": 2}


def _tokens(text: str) -> list[str] | None:
    text = text.translate(_SPELLINGS)
    if "\\" in text:
        for _ in range(4):
            text = _FRACTION.sub(r"((\1)/(\2))", text)
        names = {"\\times": "*", "\\cdot": "*", "\\ast": "*", "\\div": "/"}
        text = _COMMANDS.sub(lambda m: names.get(m[0], " "), text)
    found: list[str] = []
    position, text = 0, text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or len(found) >= MAX_TOKENS or len(match[1] or "") > MAX_DIGITS:
            return None
        found.append(match[1] or match[2])
        position = match.end()
    return found


def evaluate(text: str) -> Arithmetic | None:
    """Evaluate `text`, or return None when it is anything but plain arithmetic (or divides by zero)."""
    tokens = _tokens(text) if len(text) <= 20 * MAX_TOKENS else None
    if not tokens:
        return None
    values: list[Fraction] = []
    operators: list[str] = []
    numbers: list[int] = []
    operand_next = True  # whether a number or "(" must come, which is what refuses unary signs and "3 7"
    for token in tokens:
        if operand_next:
            if token == "(":
                operators.append(token)
            elif token.isdecimal():
                numbers.append(int(token))
                values.append(Fraction(numbers[-1]))
                operand_next = False
            else:
                return None
        elif token == ")":
            while operators and operators[-1] != "(":
                if not _apply(values, operators.pop()):
                    return None
            if not operators:
                return None
            operators.pop()
        elif token in _RANK:
            while operators and operators[-1] != "(" and _RANK[operators[-1]] >= _RANK[token]:
                if not _apply(values, operators.pop()):
                    return None
            operators.append(token)
            operand_next = True
        else:
            return None
    while operators:
        operator = operators.pop()
        if operator == "(" or operand_next or not _apply(values, operator):
            return None
    return Arithmetic(values[0], numbers) if len(values) == 1 and not operand_next else None


def _apply(values: list[Fraction], operator: str) -> bool:
    right, left = values.pop(), values.pop()
    if operator == "/" and right == 0:
        return False
    values.append(
        left + right if operator == "+" else
        left - right if operator == "-" else
        left * right if operator == "*" else
        left / right
    )  # fmt: skip
    return True
