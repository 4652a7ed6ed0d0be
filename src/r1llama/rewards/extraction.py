r"""Finding the answer that a completion commits to. Extraction is not grading: nothing here knows the gold.

The final section (what follows the last `</think>`) is searched for declarations: `<answer>` blocks, `\boxed{}`,
`#### `, "the answer is". All declarations must agree, and none may be negated, hedged or retracted. Without any, the
section itself must be one bare value or one plain statement. Everything else fails closed, with a reason code.
"""

import re
from dataclasses import dataclass

from .numeric import Number, fold, parse_number
from .phrases import (
    CONCLUSION,
    HEDGE_AFTER,
    HEDGE_BEFORE,
    HYPOTHETICAL,
    NEGATED_AFTER,
    NEGATED_BEFORE,
    OPINION,
    PHRASE,
    RETRACTION,
    SEVERAL,
)

MAX_SECTION = 200_000  # characters after the thoughts; more is no answer


@dataclass(frozen=True)
class Answer:
    r"""What a completion answers.

    Attributes:
        value: the answer as written, without its marker; None when there is none that counts.
        source: "answer_tag", "boxed", "hashes", "phrase", "bare" or "statement"; None without a value.
        reason: "found", or why there is no value: "empty", "unfinished_think" (thoughts never closed),
            "unfinished_answer" (a tag or brace never closed), "malformed_tags", "contradictory" (two different
            answers), "negated", "hedged", "echo" (the prompt repeated), "ambiguous", "no_answer", "too_long".
    """

    value: str | None
    source: str | None
    reason: str


@dataclass
class _Declaration:
    value: str
    source: str
    start: int
    end: int


_TAG = re.compile(r"</?answer>")
_NEAR_TAG = re.compile(r"<\s*/?\s*(?:answer|think)\b[^<>]{0,20}>|&lt;\s*/?\s*(?:answer|think)", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=[0-9A-Za-z\\]))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*(?=[-+\u2212$€£¥(\\.]|\d)([^\n]*)")
_SENTENCE_END = re.compile(r"[.!?。！？؟](?=[\s\"')\]*]|$)|\n")
_CLAUSE_END = re.compile(
    r"[.!?;。！？؛؟、，](?=\s|$|\*|[^\x00-\x7f])|\n|,(?=\s*(?:[a-z]|$))|\s[-–—]+\s|\s\((?=[a-zA-Z])"
    r"|\s(?:because|since|as|so|which|where|for|from|after|when|by|using|based|given)\b"
)
_MARKUP = re.compile(r"[*_`]{1,3}|^\s*>\s*")
_BLANK_RUN = re.compile(r"\s+")


def extract_answer(text: str, mode: str = "lenient", prefilled: bool = False, prompt: str = "", several: bool = False):
    r"""Return the `Answer` that `text` commits to.

    Args:
        text: one completion, any unicode.
        mode: "strict" reads only marked answers (`<answer>`, `\boxed{}`, `####`); "lenient" also "the answer is",
            a bare value and a single plain closing statement.
        prefilled: the prompt already opened `<think>`, so text before `</think>` is thought even without the tag.
        prompt: the prompt as text, to recognise an answer that only repeats it.
        several: the question has more than one value ("x = 2 or x = 3"), so joining values is no hedging.

    Raises:
        ValueError: unknown mode. Never because of `text`.
    """
    if mode not in ("strict", "lenient"):
        raise ValueError(f"mode is 'strict' or 'lenient', not {mode!r}")
    section, reason = final_section(text, prefilled)
    if section is None:
        return Answer(None, None, reason)
    if prompt:
        section = _without_echo(section, prompt)
        if not section.strip():
            return Answer(None, None, "echo")
    declarations, reason = _marked(section)
    if reason:
        return Answer(None, None, reason)
    if mode == "lenient":
        declarations = _with_phrases(section, declarations)
        if not declarations:
            return _unmarked(section, several)
    if not declarations:
        return Answer(None, None, "no_answer")
    return _agreed(section, declarations, several)


def final_section(text: str, prefilled: bool = False) -> tuple[str | None, str]:
    """Return what follows the thoughts, or None and the reason why there is nothing to read."""
    end, width = text.rfind("</think>"), len("</think>")
    if end < 0:
        end, width = text.rfind("</reasoning>"), len("</reasoning>")
    if end >= 0:
        section = text[end + width :]
        if "<think>" in section:
            return None, "unfinished_think"
    elif prefilled or "<think>" in text or "<reasoning>" in text:
        return None, "unfinished_think"
    else:
        section = text
    if not section.strip():
        return None, "empty"
    if len(section) > MAX_SECTION:
        return None, "too_long"
    return section, ""


def _without_echo(section: str, prompt: str) -> str:
    # Only a passage of some length is an echo: "42" also occurs in many prompts.
    body = _BLANK_RUN.sub(" ", section).strip()
    asked = _BLANK_RUN.sub(" ", prompt).strip()
    if len(body) >= 20 and body in asked:
        return ""
    if len(asked) >= 20 and asked in body:
        return body.replace(asked, "\n")
    lines = {line.strip() for line in prompt.splitlines() if len(line.strip()) >= 20}
    return "\n".join(line for line in section.splitlines() if line.strip() not in lines) if lines else section


# ---- declarations ------------------------------------------------------------------------------------------------


def _marked(section: str) -> tuple[list[_Declaration], str]:
    """Collect `<answer>`, `\\boxed{}` and `####` declarations, or the reason why the markup cannot be read."""
    found: list[_Declaration] = []
    if "<" in section or "&lt;" in section:
        tags = list(_TAG.finditer(section))
        if len(tags) != len(_NEAR_TAG.findall(section)):
            return [], "malformed_tags"
        if [tag[0] for tag in tags] != ["<answer>", "</answer>"] * (len(tags) // 2):
            opened = sum(tag[0] == "<answer>" for tag in tags)
            return [], "unfinished_answer" if 2 * opened > len(tags) and tags[-1][0] == "<answer>" else "malformed_tags"
        for opening, closing in zip(tags[0::2], tags[1::2], strict=True):
            inner = section[opening.end() : closing.start()]
            if not inner.strip():
                return [], "empty"
            found.append(_Declaration(inner, "answer_tag", opening.start(), closing.end()))
    if "\\boxed" in section or "\\fbox" in section:
        boxes, reason = _boxes(section)
        if reason:
            return [], reason
        found += boxes
    if "####" in section:
        found += [_Declaration(m[1], "hashes", m.start(), m.end()) for m in _HASHES.finditer(section)]
    return found, ""


def _boxes(section: str) -> tuple[list[_Declaration], str]:
    found, position = [], 0
    while match := _BOX.search(section, position):
        start = match.end()
        if not match[0].endswith("{"):  # \boxed 5, \boxed\frac12
            token = re.compile(r"[0-9]+|[A-Za-z]|\\[a-zA-Z]+(?:\{[^{}]*\})*").match(section, start)
            found.append(_Declaration(token[0] if token else "", "boxed", match.start(), token.end() if token else start))
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
        found.append(_Declaration(inner, "boxed", match.start(), end + 1))
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


def _with_phrases(section: str, declarations: list[_Declaration]) -> list[_Declaration]:
    """Add "the answer is ..." declarations that say something of their own."""
    phrases = []
    for match in PHRASE.finditer(section):
        start = match.end()
        line_end = section.find("\n", start)
        line_end = len(section) if line_end < 0 else line_end
        if not _MARKUP.sub("", section[start:line_end]).strip(" :$"):
            # A heading: the value is on the next line that is not empty.
            following = re.compile(r"\s*([^\n]+)").match(section, line_end)
            line_end = following.end() if following else line_end
        tail = section[start:line_end]
        if any(d.start < line_end and d.end > match.start() for d in declarations):
            continue  # "the answer is \boxed{42}" is declared by its box
        value = _clause(tail)
        if value:
            phrases.append(_Declaration(value, "phrase", match.start(), start + len(tail)))
    if declarations or any(sole_number(p.value) for p in phrases):
        # Beside a real value, "the answer is reasonable" declares nothing.
        phrases = [p for p in phrases if sole_number(p.value) or _several_numbers(p.value)]
    return declarations + phrases


def _clause(tail: str) -> str:
    """Cut the value out of what follows "the answer is"."""
    tail = _MARKUP.sub("", tail).strip().lstrip(":=：").strip()
    math = re.match(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", tail)
    if math and not re.match(r"\$\d[\d,.]*\s+[^$]*\$$", math[0]):
        rest = _CLAUSE_END.split(tail[math.end() :], maxsplit=1)[0]
        return (next(g for g in math.groups() if g is not None) + " " + rest.strip(" .")).strip()
    return _CLAUSE_END.split(tail, maxsplit=1)[0].strip(" .\"'")


# ---- agreement and context ---------------------------------------------------------------------------------------


def _agreed(section: str, declarations: list[_Declaration], several: bool) -> Answer:
    """Return the one answer that all declarations give, or the reason why they give none."""
    leaves = [_resolve(d, several) for d in declarations if not _contains_other(d, declarations)]
    for declaration in declarations:
        reason = _context(section, declaration, several)
        if reason:
            return Answer(None, None, reason)
    for leaf in leaves:
        if leaf.value is None:
            return leaf
    if len({value_key(leaf.value or "") for leaf in leaves}) > 1:
        return Answer(None, None, "contradictory")
    last = max(d.end for d in declarations)
    if RETRACTION.search(section, last):
        return Answer(None, None, "negated")
    order = ("answer_tag", "boxed", "hashes", "phrase")
    return min(leaves, key=lambda leaf: order.index(leaf.source or "phrase"))


def _contains_other(outer: _Declaration, declarations: list[_Declaration]) -> bool:
    return any(d is not outer and outer.start <= d.start and d.end <= outer.end for d in declarations)


def _resolve(declaration: _Declaration, several: bool) -> Answer:
    """Read the value inside one declaration."""
    value = declaration.value.strip()
    if declaration.source != "boxed":
        value = _MARKUP.sub("", value).strip()
    if not several and SEVERAL.search(value):
        return Answer(None, None, "hedged")
    if NEGATED_BEFORE.search(" " + value) or re.search(r"\bnot\b|n't\b|\bnever\b", value):
        return Answer(None, None, "negated")
    if HEDGE_BEFORE.search(value + " "):
        return Answer(None, None, "hedged")
    if not value:
        return Answer(None, None, "empty")
    return Answer(value, declaration.source, "found")


def _context(section: str, declaration: _Declaration, several: bool) -> str:
    """Return why the words around a declaration take it back, or "" when they do not."""
    before = _SENTENCE_END.split(section[max(0, declaration.start - 200) : declaration.start])[-1]
    after = section[declaration.end : declaration.end + 200]
    sentence_after = _SENTENCE_END.search(after)
    rest = after[: sentence_after.start()] if sentence_after else after
    if NEGATED_BEFORE.search(before) or NEGATED_AFTER.match(after):
        return "negated"
    said = declaration.value if declaration.source == "phrase" else ""
    if HEDGE_BEFORE.search(before) or HYPOTHETICAL.search(before) or (not several and HEDGE_AFTER.match(said + rest)):
        return "hedged"
    if sentence_after and sentence_after[0] in "?？؟":
        return "hedged"
    return ""


def value_key(value: str) -> object:
    """Return what two spellings of the same value share: the exact number, else the text without its spaces."""
    number = sole_number(value)
    if number is not None:
        return number.value
    return _BLANK_RUN.sub("", value).strip("$. ").casefold()


# ---- answers without a marker ------------------------------------------------------------------------------------


def _unmarked(section: str, several: bool) -> Answer:
    """Read a section that declares nothing: one bare value, or one statement with one number."""
    body = section.strip()
    if "```" in body or re.search(r"[<>]|&lt;", body):
        return Answer(None, None, "malformed_tags" if "<" in body else "no_answer")
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    last = _MARKUP.sub("", lines[-1]).strip()
    alone = len(lines) == 1
    if alone and parse_number(last) is not None:
        return Answer(last, "bare", "found")
    if alone and len(last) <= 60 and not several and SEVERAL.search(last):
        return Answer(None, None, "hedged")
    if alone and re.fullmatch(r"\$[^$]+\$\.?|\\\(.+\\\)\.?|\\\[.+\\\]", last):
        return Answer(last, "bare", "found")
    sentences = [s for s in _SENTENCE_END.split(last) if s.strip()]
    if last.endswith(("?", "？", "؟")) or not sentences:
        return Answer(None, None, "ambiguous")
    statement = sentences[-1].strip()
    if RETRACTION.search(statement) or NEGATED_BEFORE.search(statement) or re.search(r"\bnot\b|n't\b", statement):
        return Answer(None, None, "negated")
    if HEDGE_BEFORE.search(statement) or SEVERAL.search(statement) or HYPOTHETICAL.search(statement):
        return Answer(None, None, "hedged")
    concluding = CONCLUSION.match(statement)
    if concluding:
        statement = statement[concluding.end() :].strip(" ,:")
    elif not (alone and len(sentences) == 1) or OPINION.search(statement):
        return Answer(None, None, "no_answer")
    if re.fullmatch(r"[\w ,'’$€£¥%.\-−()=+*/×÷:°\\{}^|]+", statement) and sole_number(statement) is not None:
        return Answer(statement, "statement", "found")
    if _several_numbers(statement):
        return Answer(None, None, "ambiguous")
    if alone and len(statement) <= 40:
        return Answer(statement, "bare", "found")
    return Answer(None, None, "no_answer")


_NUMBER_TOKEN = re.compile(
    r"(?<![\w.,\\^{])[-−–]?(?:[$€£¥]\s?-?)?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s?/\s?\d+)?(?![\w^]|[.,]\d)"
    r"(?:\s?%|\s(?:percent|hundred|thousand|million|billion|trillion|dozen)\b)?"
)


def sole_number(text: str) -> Number | None:
    """Return the number of a text that holds exactly one ("42", "x = 42", "she has 42 apples"), else None.

    An equation gives its right side, when its left side is no number of its own.
    """
    number = parse_number(text)
    if number is not None:
        return number
    if "\\" in text or len(text) > 400:
        left, equals, right = text.rpartition("=")
        return parse_number(right) if equals and len(text) <= 400 and parse_number(left) is None else None
    folded = fold(text)
    if "=" in folded:
        left, _, right = folded.rpartition("=")
        return None if parse_number(left.rpartition("=")[2]) is not None else parse_number(right)
    if re.search(r"[*+×÷^√!]|\d\s*[-/]\s*\D*\d|_", folded):
        return None
    tokens = list(_NUMBER_TOKEN.finditer(folded))
    if len(tokens) != 1 or len(re.findall(r"\d+", folded)) != len(re.findall(r"\d+", tokens[0][0])):
        return None
    return parse_number(tokens[0][0].strip())


def _several_numbers(text: str) -> bool:
    return len(re.findall(r"\d+(?:[.,]\d+)*", fold(text))) > 1
