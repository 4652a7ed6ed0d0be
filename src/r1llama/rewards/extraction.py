r"""Finding the answer that a completion commits to. Extraction is not grading: nothing here knows the gold.

The final section (what follows the last `</think>`) is searched for declarations: `<answer>` blocks, `\boxed{}`,
`#### `, "the answer is". All declarations must agree, and none may be negated, hedged or retracted. Without any, the
section itself must be one bare value or one plain statement. Everything else fails closed, with a reason code.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from .context import doubt_before, doubt_in, sentence_before
from .declarations import EMPHASIS, MAX_CLAUSE, MAX_DECLARATIONS, Declaration, marked, several_numbers, with_phrases
from .lexicon import OR, joins, tokens
from .numeric import parse_number
from .phrases import CONCLUSION, LEAD, PHRASE, PLAIN_QUALITIES, SEVERAL, TOTAL, assert_contrast
from .retraction import SENTENCE_END, denies, doubt_after, doubt_beside
from .statements import stated_number
from .text import undressed

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


_N = r"-?\$?\d{1,15}(?:,\d{3}){0,5}(?:\.\d{1,15})?"
_BARE = re.compile(_N)
_LEAD = r"(?:(?:(?:So|Thus|Therefore|Hence),?[ ])?[Tt]he[ ](?:final[ ])?answer[ ]is:?[ ])"
# The sections that most completions have, so plain that nothing in them could take the answer back.
_PLAIN_SECTION = re.compile(
    rf"\s*(?:<answer>\s*(?P<answer_tag>{_N})\s*</answer>|####[ ]?(?P<hashes>{_N})"
    rf"|{_LEAD}?\$?\\boxed\{{(?P<boxed>{_N})\}}\$?\.?|{_LEAD}(?P<phrase>{_N})\.?)\s*"
)
_END_TOKEN = re.compile(r"(?:<\|[a-z_]{1,20}\|>|</s>)$")  # where a caller decodes with special tokens
_ALL_MATHS = re.compile(r"\$[^$]+\$\.?|\\\(.+\\\)\.?|\\\[.+\\\]\.?")
_ASIDE = re.compile(r",\s*(?:so|but|because|which|and|or|if|though)\b", re.IGNORECASE)
_REASONED = re.compile(
    r"([^\s(,]+(?: \w+)?)(?:,? (?:because|since)\b| \((?!or\b|not\b|wrong\b|incorrect\b|maybe\b))", re.I
)
_OPENING_QUOTES = ('"', "“", "«", "„", "「", "'", "‘")
_CLOSING = re.compile(
    r"(?:the|this|his|her|their|its|there|that)\b[^,;:]*\b(?:is|are|was|were|equals)\s+\S+(?:\s\w+){0,2}",
    re.IGNORECASE,
)
_SHOWN = re.compile(r"\n\s*\n\*\*[^*\n]+\*\*\.?$")
_NAMED = re.compile(r"(?:the|its|this)\b[^,;:$\\\d]*\s(?:is|are|equals)\s+(\$[^$]+\$|\d+\s?:\s?\d+)", re.IGNORECASE)
_LAST_WORD = re.compile(r"(?<=\d) ?\w* [^\W\d_]+\s*$|(?<=\d) [^\W\d_]+\s*$")
_MARKERS = {"answer_tag": "<answer>", "boxed": "boxed", "hashes": "####", "phrase": "nswer"}
_QUOTATION = re.compile(r"\s*(?:>[^\n]*\n)+")
_ASKING = re.compile(r"\?|\\boxed\{\s*\}")
_FILLED = re.compile(r"\\boxed\s*(?:\{\s*[^\s}]|[^\s{])|####|<answer>")
_CLOSING_QUOTES = ('"', "”", "»", "“", "」", "'", "’")
_OFFER = re.compile(
    r"(?:\n\s*|(?<=[.!?])\s+)(?:(?:would you like|do you want|shall i|should i)\b[^.?\d\n]*\b(?:explain|show|walk"
    r"|elaborate|clarify|details?|another|similar)"
    r"|(?:please )?(?:let me know|feel free|reach out|if you (?:have|need|want))\b[^.?\d\n]*"
    r"\b(?:help|questions?|need|explanation|details?)|(?:i )?hope (?:this|that|it) helps)"
    r"(?:(?!wrong|mistake|error|incorrect)[^.?!\d\n]){0,80}[.?!]*[^\w\n]*$",
    re.IGNORECASE,
)
_RESULT = re.compile(r"=\s*[*$]*(-?\d[\d.,]*)[^\d=\n]{0,20}$")
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
    plain = _PLAIN_SECTION.fullmatch(section)
    if plain and (mode == "lenient" or plain.lastgroup != "phrase"):
        return Answer(plain[plain.lastgroup or 0], plain.lastgroup, "found")
    if prompt:
        section = _without_echo(section, prompt)
        if not section.strip():
            return Answer(None, None, "echo")
    said = _without_quoted_question(undressed(section))
    section = assert_contrast(said)
    declarations, reason = marked(section)
    if reason:
        return Answer(None, None, reason)
    if mode == "lenient":
        declarations = with_phrases(section, declarations)
        if not declarations:
            answer = _unmarked(section, several)
            return answer if not _is_copied(answer, prompt) else Answer(None, None, "echo")
    if not declarations:
        return Answer(None, None, "no_answer")
    if len(declarations) > MAX_DECLARATIONS:
        return Answer(None, None, "ambiguous")
    answer = _agreed(section, _without_claims(section, declarations), several)
    marker, value = _MARKERS.get(answer.source or "", ""), answer.value or ""
    if marker and marker in said and denies(said[said.rfind(marker) + len(marker) + len(value) :], value):
        return Answer(None, None, "negated")
    return answer


def _without_quoted_question(section: str) -> str:
    """Drop the Markdown quotation at the start when it is the question: it asks, or shows where the answer belongs."""
    quoted = _QUOTATION.match(section)
    if quoted is None or not section[quoted.end() :].strip() or not _ASKING.search(quoted[0]):
        return section
    return section if _FILLED.search(quoted[0]) else section[quoted.end() :]


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
    section = _END_TOKEN.sub("", section)
    if not section.strip():
        return None, "empty"
    if len(section) > MAX_SECTION:
        return None, "too_long"
    return section, ""


@lru_cache(maxsize=256)
def _asked(prompt: str) -> tuple[str, frozenset[str]]:
    lines = frozenset(s for s in map(str.strip, prompt.splitlines()) if len(s) >= 20 and not _declares(s))
    return _BLANK_RUN.sub(" ", prompt).strip(), lines


def _declares(line: str) -> bool:
    # "The final answer is 8." also stands in prompts with worked examples, and is no echo of them.
    match = PHRASE.search(line, 0, 40)
    return match is not None and match.start() <= 8


def _is_copied(answer: Answer, prompt: str) -> bool:
    """Tell whether a statement stands word for word in the prompt."""
    said = _BLANK_RUN.sub(" ", answer.value or "")
    return answer.source == "statement" and len(said) >= 12 and said.casefold() in _asked(prompt)[0].casefold()


def _without_echo(section: str, prompt: str) -> str:
    # Only a passage of some length is an echo: "42" also occurs in many prompts.
    body = _BLANK_RUN.sub(" ", section).strip()
    asked, lines = _asked(prompt)
    if len(body) >= 12 and " " in body and body in asked and not _declares(body):
        return ""
    if len(asked) >= 20 and asked in body:
        return body.replace(asked, "\n")
    return "\n".join(line for line in section.splitlines() if line.strip() not in lines) if lines else section


# ---- agreement and context ---------------------------------------------------------------------------------------


def _agreed(section: str, declarations: list[Declaration], several: bool) -> Answer:
    """Return the one answer that all declarations give, or the reason why they give none."""
    leaves = [
        _resolve(d, several) for d in declarations if len(declarations) == 1 or not _contains_other(d, declarations)
    ]
    for declaration in declarations:
        reason = _context(section, declaration, several)
        if reason:
            return Answer(None, None, reason)
    for leaf in leaves:
        if leaf.value is None:
            return leaf
    if len(leaves) > 1 and len({value_key(leaf.value or "") for leaf in leaves}) > 1:
        return Answer(None, None, "contradictory")
    order = ("answer_tag", "boxed", "hashes", "phrase")
    return min(leaves, key=lambda leaf: order.index(leaf.source or "phrase"))


def _contains_other(outer: Declaration, declarations: list[Declaration]) -> bool:
    return any(d is not outer and outer.start <= d.start and d.end <= outer.end for d in declarations)


def _resolve(declaration: Declaration, several: bool) -> Answer:
    """Read the value inside one declaration."""
    value = declaration.value.strip()
    if declaration.source == "answer_tag":
        inner = with_phrases(value, [])
        if len(inner) == 1 and inner[0].start == 0:
            value = inner[0].value
        elif len({value_key(d.value) for d in inner}) > 1:
            return Answer(None, None, "contradictory")
    if declaration.source != "boxed":
        value = EMPHASIS.sub("", value).strip()
    reason = _doubt(value[:MAX_CLAUSE], several)
    if not reason and declaration.source == "phrase" and not declaration.introduced and not _leads_up(value):
        reason = "no_answer"
    if reason:
        return Answer(None, None, reason)
    return Answer(value, declaration.source, "found") if value else Answer(None, None, "empty")


def _doubt(value: str, several: bool) -> str:
    """Return why a value or statement commits to nothing, or ""."""
    if value.endswith(("?", "？", "؟")):
        return "hedged"
    if _BARE.fullmatch(value):
        return ""
    words = tokens(value[-40:])
    if not several and (SEVERAL.search(value) or (words and words[-1].cues & OR)):  # "(D) or" | "(E)"
        return "hedged"
    number = re.search(r"[-$\\]?\d[\d.,]*", value)
    if not number:
        return ""
    return doubt_before(value[: number.start()]) or doubt_beside(value[number.end() :], several)


def _leads_up(value: str) -> bool:
    """Tell whether only words of a closed list stand before the number in what follows "the answer is".

    Names may ("March 14"); "worth 10 points" and "posted in 2024" say something else about the answer.
    """
    lead = re.match(r"[^\d=]*(?=\d)", value)
    words = re.findall(r"(?<!\\)\b[^\W\d_]+", lead[0]) if lead else []
    return words[:1] == ["that"] or all(
        word.lower() in LEAD or word[0].isupper() or not word.islower() for word in words
    )


def _context(section: str, declaration: Declaration, several: bool) -> str:
    """Return why the words around a declaration take it back, or "" when they do not."""
    quality = ""
    if declaration.source == "phrase":
        announced = PHRASE.match(section, declaration.start)
        quality = (announced["quality"] or announced["quality2"] or "").lower() if announced else ""
        if quality and quality not in PLAIN_QUALITIES and not joins(quality):
            return "negated"
        if _opens_quote(section[: declaration.start]):
            return "echo"
    start = declaration.start
    if quality and quality not in PLAIN_QUALITIES:  # "so", "that" lead to the answer and are no part of its name
        start += len(quality)
    before = sentence_before(section, start)
    announcement = section[declaration.start : declaration.value_start] if declaration.source == "phrase" else ""
    end, number = declaration.end, stated_number(declaration.value)
    if declaration.source == "phrase":  # "42 only | when n is even": the last word belongs to what follows
        last = _LAST_WORD.search(section, declaration.value_start, end)
        end = last.start() if last else end
    return doubt_before(before, announcement) or doubt_after(section[end:], several, number.value if number else None)


def _opens_quote(before: str) -> bool:
    """Tell whether `before` ends in a quotation mark that opens; `"` and `'` also close."""
    before = before.rstrip(" *_")
    if before.endswith('"'):
        return before.count('"') % 2 == 1
    return before.endswith(_OPENING_QUOTES) and not before.endswith((".'", "!'", "?'"))


def _without_claims(section: str, declarations: list[Declaration]) -> list[Declaration]:
    """Leave out the phrases that stand in quotation marks as what others say, where the text has an answer of its own.

    Only another, later declaration makes them a foreign claim: alone they are an echo.
    """
    own = [d for d in declarations if not (d.source == "phrase" and _is_claim(section, d))]
    return own if own and own[-1] is declarations[-1] else declarations


def _is_claim(section: str, declaration: Declaration) -> bool:
    before = sentence_before(section, declaration.start)
    return (
        _opens_quote(section[: declaration.start])
        and section[declaration.value_start : declaration.end + 2].rstrip(" .,!").endswith(_CLOSING_QUOTES)
        and doubt_before(before.rstrip(" \"“«„'‘:,")) == "hedged"
    )


def value_key(value: str) -> object:
    """Return what two spellings of the same value share: the exact number, else the text without its spaces."""
    number = stated_number(value)
    if number is not None:
        return number.value
    return _BLANK_RUN.sub("", value).strip("$. ").casefold()


# ---- answers without a marker ------------------------------------------------------------------------------------


def _unmarked(section: str, several: bool) -> Answer:
    """Read a section that declares nothing: one bare value, or a closing statement with one number."""
    body = section.strip()
    for _ in range(2):
        body = body[:-400] + _OFFER.sub("", body[-400:])
    if "```" in body or re.search(r"[<>]\s*/?\s*\w+\s*>|&lt;", body):
        return Answer(None, None, "malformed_tags")
    first, _, last = body.rpartition("\n")
    alone = not first.strip()
    if len(last) > MAX_CLAUSE:
        return Answer(None, None, "no_answer")
    last = EMPHASIS.sub("", last).strip()
    reason = _doubt(last, several)
    if reason:
        return Answer(None, None, reason)
    shown = bool(_SHOWN.search(body[-MAX_CLAUSE - 20 :]))  # "**42**" on a line of its own at the end
    if (alone or shown) and (parse_number(last) is not None or _ALL_MATHS.fullmatch(last)):
        return Answer(last, "bare", "found")
    sentences = [s.strip() for s in SENTENCE_END.split(last) if any(map(str.isalnum, s))]
    if not sentences:
        return Answer(None, None, "no_answer")
    statement = sentences[-1]
    if not several and SEVERAL.search(statement):
        return Answer(None, None, "hedged")
    concluding = TOTAL.match(statement) or CONCLUSION.match(statement)
    if concluding:
        statement = statement[concluding.end() :].strip(" ,:=")
    reason = doubt_in(statement, several) if re.search(r"\d", statement) else ""
    if reason:
        return Answer(None, None, reason)
    reasoned = _REASONED.match(last) if alone else None
    if reasoned and parse_number(reasoned[1]) is not None:
        return Answer(reasoned[1], "bare", "found")
    number = stated_number(statement)
    if number is not None and not _ASIDE.search(statement):
        equation = "=" in statement
        result = _RESULT.search(first.rstrip()[-100:]) if shown and len(sentences) == 1 else None
        if result and parse_number(result[1].rstrip(".,")) == number:  # "24 + 9 = 33", "**They have 33 legs.**"
            return Answer(statement, "statement", "found")
        if concluding or (len(sentences) == 1 and (alone or _CLOSING.fullmatch(statement))) or equation:
            return Answer(statement, "statement", "found")
        return Answer(None, None, "no_answer")
    named = _NAMED.fullmatch(statement) if len(sentences) == 1 else None
    if named:
        return Answer(named[1], "statement", "found")
    if several_numbers(statement) and not several:
        return Answer(None, None, "ambiguous")
    if alone and len(sentences) == 1 and len(statement) <= 60:
        return Answer(statement, "bare", "found")
    return Answer(None, None, "no_answer")
