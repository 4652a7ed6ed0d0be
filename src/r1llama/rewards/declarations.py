r"""Declarations: the places where a text says that something is its answer.

`<answer>` blocks, `\boxed{}`, `#### ` and "the answer is ...". Whether they count, and agree, is for `extraction`.
"""

import re
from dataclasses import dataclass
from itertools import islice

from .numeric import fold
from .phrases import ASCII_KEYWORDS, KEYWORDS, PHRASE, WEAK_PHRASE
from .statements import stated_number

MAX_CLAUSE = 400  # characters of one statement
MAX_DECLARATIONS = 50

_TAG = re.compile(r"</?answer>")
_NEAR_TAG = re.compile(r"<\s*/?\s*(?:answer|think)\b[^<>]{0,20}>|&lt;\s*/?\s*(?:answer|think)", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=[0-9A-Za-z\\]))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*(?=[-+\u2212$€£¥(\\.]|\d)([^\n<]*)")
_CLAUSE_END = re.compile(
    r"[.!?;。！？؛؟、，](?=\s|$|\*|[^\x00-\x7f])|\n|,(?=\s*(?:[a-zà-öø-ÿа-яёğışİçşü]|$))|\s[-–—]+\s"
    r"|(?<=[\w%)$])(?<!option)(?<!choice)\s\((?=\w)|\s(?:because|since|as|so|which|where|for|from|after|when|by|using|based|given)\b"
)
EMPHASIS = re.compile(r"(?<![\w*)])[*_`]{1,3}(?=[^\s*])|(?<=[^\s*])[*_`]{1,3}(?![\w*(])")
_STUCK = re.compile(r"[{\d]")
_HEADING_END = re.compile(r"[ \t*_:$]*\n\s*")
_HEADING_START = re.compile(r"(?:^|\n)[ \t*_#>\d.]*(?:the )?$", re.IGNORECASE)
_LEADING = re.compile(r"[\s*_`:：]*(?:\.{2,3}|…|=(?!=))?[\s*_`\"']*")
_INLINE_MATH = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_SYMBOLIC = re.compile(r"[\s*_:]*\$(?=[^$]*\d)(?=[^$]*[a-zA-Z])[^$=]+\$")  # an answer, and no number
_TWO_PRICES = re.compile(r"\$\d[\d,.]*\s+[^$]*\$$")


@dataclass
class Declaration:
    value: str
    source: str
    start: int
    end: int
    value_start: int = 0
    introduced: bool = False  # by a colon, so that a whole statement may follow


def marked(section: str) -> tuple[list[Declaration], str]:
    """Collect `<answer>`, `\\boxed{}` and `####` declarations, or the reason why the markup cannot be read."""
    found: list[Declaration] = []
    if "<" in section or "&lt;" in section:
        tags = list(_TAG.finditer(section))
        if len(tags) != len(_NEAR_TAG.findall(section)):
            return [], "malformed_tags"
        if [tag[0] for tag in tags] != ["<answer>", "</answer>"] * (len(tags) // 2):
            opened = sum(tag[0] == "<answer>" for tag in tags)
            return [], "unfinished_answer" if 2 * opened > len(tags) and tags[-1][
                0
            ] == "<answer>" else "malformed_tags"
        for opening, closing in zip(tags[0::2], tags[1::2], strict=True):
            inner = section[opening.end() : closing.start()]
            if not inner.strip():
                return [], "empty"
            found.append(Declaration(inner, "answer_tag", opening.start(), closing.end()))
    if "\\boxed" in section or "\\fbox" in section:
        boxes, reason = _boxes(section)
        if reason:
            return [], reason
        found += boxes
    if "####" in section:
        found += [Declaration(m[1], "hashes", m.start(), m.end()) for m in _HASHES.finditer(section)]
    return found, ""


def _boxes(section: str) -> tuple[list[Declaration], str]:
    found, position = [], 0
    while match := _BOX.search(section, position):
        start = match.end()
        if not match[0].endswith("{"):  # \boxed 5, \boxed\frac12
            token = re.compile(r"[0-9]+|[A-Za-z]|\\[a-zA-Z]+(?:\{[^{}]*\})*").match(section, start)
            found.append(
                Declaration(token[0] if token else "", "boxed", match.start(), token.end() if token else start)
            )
            position = start + 1
            continue
        end = closing_brace(section, start)
        if end is None:
            return [], "unfinished_answer"
        inner = section[start:end]
        if _BOX.search(inner):  # \boxed{\boxed{42}}: the inner one is the answer
            position = start
            continue
        if not inner.strip():
            return [], "empty"
        if _STUCK.match(section, end + 1):  # \boxed{4}2, \boxed{4}{2}
            return [], "ambiguous"
        found.append(Declaration(inner, "boxed", match.start(), end + 1))
        position = end + 1
    return found, ""


def closing_brace(text: str, start: int) -> int | None:
    """Return the position of the brace that closes the one before `start`; escaped braces do not count."""
    depth = 1
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def with_phrases(section: str, declarations: list[Declaration]) -> list[Declaration]:
    """Add "the answer is ..." declarations that say something of their own."""
    lowered = section.lower()
    keywords = ASCII_KEYWORDS if lowered.isascii() else KEYWORDS
    found = [at for at in map(lowered.find, keywords) if at >= 0]
    if not found:
        return declarations
    phrases = []
    # "final" may stand before the keyword; lower() may also have changed the length before it.
    for match in islice(PHRASE.finditer(section, max(0, min(found) - 40)), MAX_DECLARATIONS + 1):
        start = match.end()
        heading = _HEADING_END.match(section, start) if _HEADING_START.search(section, 0, match.start()) else None
        if heading:  # the value is on the next line that is not empty
            start = heading.end()
        tail = section[start : start + MAX_CLAUSE].split("\n", 1)[0]
        value, length = _clause(tail)
        end = start + length
        if any(d.start < end and d.end > match.start() for d in declarations):
            continue  # "the answer is \\boxed{42}" is declared by its box
        if value:
            introduced = bool(heading) or section[match.start() : start].rstrip(" *_\n")[-1:] in (":", "：")
            phrases.append(Declaration(value, "phrase", match.start(), end, match.end(), introduced))
    if len(phrases) == 1 and not declarations:
        return phrases
    strong = [p for p in phrases if not WEAK_PHRASE.search(section, p.start, p.value_start)]
    if declarations or strong:
        phrases = strong
    if declarations or any(stated_number(p.value) for p in phrases):
        # Beside a real value, "the answer is reasonable" declares nothing.
        last = max((d.end for d in declarations), default=len(section))
        numeric = any(stated_number(d.value) for d in declarations)
        phrases = [
            p
            for p in phrases
            if stated_number(p.value)
            or several_numbers(p.value)
            or (numeric and p.start > last and _SYMBOLIC.match(section, p.value_start))
        ]
    return declarations + phrases


def _clause(tail: str) -> tuple[str, int]:
    """Cut the value out of what follows "the answer is"; return it and the position in `tail` where it ends."""
    start = _LEADING.match(tail).end()  # type: ignore[union-attr]
    math = _INLINE_MATH.match(tail, start)
    if math and not _TWO_PRICES.match(math[0]):
        inner = next(g for g in math.groups() if g is not None)
        unit = _CLAUSE_END.search(tail, math.end())
        end = unit.start() if unit else len(tail)
        return f"{inner} {EMPHASIS.sub('', tail[math.end() : end]).strip(' .*')}".strip(), end
    cut = _CLAUSE_END.search(tail, start)
    end = cut.start() if cut else len(tail)
    return EMPHASIS.sub("", tail[start:end]).strip().rstrip(" .\"'"), end


def several_numbers(text: str) -> bool:
    return len(re.findall(r"\d+(?:[.,:]\d+)*", fold(text))) > 1
