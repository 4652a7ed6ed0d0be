"""Whether what follows an answer takes it back, doubts it, or puts another beside it; see `context` for the rest."""

import re
from fractions import Fraction

from . import lexicon as cue
from .lexicon import MARK, Token, tokens
from .numeric import parse_number

SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bz\.B)(?<!\bp\.ex)(?<!\bcf)[.!?؟](?=[\s\"'»”)\]*]|$)|[。！？।]|\n"
)
REACH = 1500  # characters after an answer in which it may be taken back
_VALUE_NEXT = re.compile(r"[\s$*(\\\[{]*-?[\s$*(\\\[{]*(?:\d|frac|sqrt|boxed)")
_STRUCK_MARK = re.compile(r"[\s$*()\"'`.,!;:\\\[\]\-–—]{0,12}[✗✘❌✖🚫❎👎]")
_RESTATED = re.compile(
    r"(?:\b(?:or|oder|ou|o|veya|или)\s+(?:\w+\s+){0,2}|\b(?:it|that|this)(?:['’]s|\s+is)\s+(?:(?:actually|really|in\s+fact)\s+)?|(?:->|→|⇒)\s*"
    r"|\b(?:right|correct|true|actual|real|proper)\s+\w+\s+(?:is|was|should\s+be)\s+)"
    r"\$?(-?\d[\d.,/]*%?)(?![\d.,/]*\d)(?=[.,;!)]|$|\n|\s+(?:and|but|not)\b)",
    re.IGNORECASE,
)
_OTHER_NUMBER = re.compile(
    r"(?!(?:step|part|case|note|figure|page|section|schritt|étape|paso|passo|adım|шаг)\b)[^\W\d_][^\d=*/+×]{0,30}?(\$?-?\d[\d,.]*)",
    re.IGNORECASE,
)
_NEW_SENTENCE = re.compile(r"[*_$)]*\s+[A-ZÀ-ÞА-ЯİÇŞÖÜ¿¡]")
# "366 downloads over the three months" compares nothing.
_SPAN = re.compile(
    r"(?:over|between)\s+(?:the|these|those|this|that|his|her|its|their|all|both)\s+(?:[^\W\d_]+\s+){0,3}"
    r"(?:second|minute|hour|day|night|week|weekend|month|year|season|semester|summer|winter|period|course)s?\b",
    re.IGNORECASE,
)
_PLAIN_NUMBER = re.compile(r"(?<![\d.,{-])\d(?:[\d.,/]*\d)?(?!\s*[-+*/^=<>%×])")
_UNEQUAL = re.compile(r"(?:≠|!=|\\neq?)[\s$]*$")
_LINKS = "be equal to the a number value exactly really simply ist est es son è é".split()  # noqa: SIM905
_AND = ("and", "und", "et", "y", "e", "ve", "и")
_ANOTHER = re.compile(r"\s*\$?\s*[,;/|&]\s*[-$]*\d")


def doubt_after(text: str, several: bool = False, value: Fraction | None = None) -> str:
    """Return why what follows a value takes it back or puts another beside it ("negated", "hedged"), or "".

    Args:
        several: the question has several values, so "or" joins them.
        value: the number itself, if it is one: "1/6, or about 0.167" says it twice.
    """
    text = text[:REACH]
    if not several and value is not None and (_differs(text, value) or _followed_by_another(text, value)):
        return "hedged"
    if _STRUCK_MARK.match(text):
        return "negated"
    if not several and _ANOTHER.match(text):
        return "hedged"
    if _NEW_SENTENCE.match(text):
        return _taken_back(text)
    end = SENTENCE_END.search(text)
    own, rest = (text[: end.start()], text[end.end() :]) if end else (text, "")
    if end and end[0] in "?？؟":
        return "hedged"
    for word in [] if several else tokens(own):
        if word.cues & cue.RELATIVE:
            break
        if word.text in _AND and _VALUE_NEXT.match(own, word.end):
            return "hedged"  # "42 for Alice and 43 for Bob"
    return doubt_beside(own, several) or _taken_back(rest)


def _differs(text: str, value: Fraction) -> bool:
    """Tell whether another number is put in the place of `value`: "or equivalently 44", "... it's 44"."""
    for match in _RESTATED.finditer(text):
        number = parse_number(match[1].rstrip(".,"))
        if number is not None and abs(number.value - value) > abs(value) / 100:
            return True
    return False


def _followed_by_another(text: str, value: Fraction) -> bool:
    """Tell whether a short sentence afterwards only says another number: "Or rather 43", "Anzi, 43"."""
    for sentence in SENTENCE_END.split(text, maxsplit=6)[1:6]:
        match = _OTHER_NUMBER.fullmatch(sentence.strip())
        number = parse_number(match[1]) if match else None
        if number is not None and abs(number.value - value) > abs(value) / 100:
            return True
    return False


def denies(text: str, value: str) -> bool:
    """Tell whether `text` goes on to say "not 11" of the very number that was the answer."""
    numbers = re.findall(r"\d(?:[\d.,/]*\d)?", value)
    if len(numbers) != 1 or "\\" in value or "^" in value:
        return False
    text = text[:REACH]
    for match in _PLAIN_NUMBER.finditer(text) if numbers[0] in text else ():
        if match[0] != numbers[0]:
            continue
        before = SENTENCE_END.split(text[: match.start()])[-1]
        if _UNEQUAL.search(before):
            return True
        words = tokens(before)
        at = len(words) - 1
        while at >= 0 and words[at].text in _LINKS:
            at -= 1
        if at < 0 or not words[at].cues & cue.NEGATION or words[-1].text == "no":
            continue
        if not any(w.cues & (cue.OTHER | cue.CONDITION | cue.IF) for w in clause_of(words, at)):
            return True
    return False


def doubt_beside(text: str, several: bool) -> str:
    """Return why the rest of the value's own sentence takes it back ("negated", "hedged"), or ""."""
    words = tokens(text)
    own_clause, reasons = True, False
    for at, word in enumerate(words):
        cues = word.cues
        if cues == MARK:
            own_clause = own_clause and word.text in "()"
            continue
        if not at and cues & cue.INTERJECTION and _stands_alone(words, word) and re.search(r"\d", text):
            return "negated"
        if cues & cue.OR and not several and _VALUE_NEXT.match(text, word.end):
            return "hedged"
        reasons = reasons or bool(cues & cue.RELATIVE)
        if cues & (cue.RELATIVE | cue.JOIN | cue.RESET):
            own_clause = False
        of_two = at + 1 < len(words) and words[at + 1].cues & cue.NEGATION  # "rather than"
        if cues & cue.NEGATION and own_clause and not (of_two or _VALUE_NEXT.match(text, word.end)):
            return "negated"
        if cues & cue.WRONG and not _excused(words, at):
            return "negated"
        if cues & (cue.RETRACT | cue.GIVE_UP) and not _excused(words, at):
            return "negated"
        if cues & cue.HEDGE and re.match(r"[^\d.]{0,20}\d", text[word.end :]):
            return "hedged"
        if cues & (cue.CONCESSION | cue.EXAMPLE):
            return "hedged"
        if cues & cue.REPORT and not reasons and not words[at - 1].cues & cue.SELF:
            return "hedged"
        if not reasons and cues & (cue.HEDGE | cue.CONDITION | cue.IF | cue.OTHERWISE | cue.QUESTION):
            return "hedged"
        if cues & cue.COMPARE and own_clause and at < 2 and not _SPAN.match(text, word.start):
            return "hedged"
    return _denied(words, text)


def _taken_back(text: str) -> str:
    """Judge the sentences after the value's own."""
    start = 0
    while start < len(text):
        end = SENTENCE_END.search(text, start)
        sentence = text[start : end.start()] if end else text[start:]
        words = tokens(sentence)
        reason = _denied(words, sentence)
        first = next((w for w in words if w.cues != MARK), None)
        digit = re.search(r"\d", sentence)
        short = digit and len(words) <= 8
        if first is not None and not reason:
            if first.cues & cue.INTERJECTION and (_stands_alone(words, first) or short):
                reason = "negated"
            elif (
                (first.cues & cue.OR and digit)
                or (first.cues & cue.HEDGE and short)
                or (first.cues & cue.CONCESSION and "=" not in sentence)
            ):
                reason = "hedged"
            elif len(words) <= 4 and any(w.cues & cue.HEDGE for w in words):
                reason = "hedged"  # "Just a guess."
            elif len(words) == 2 and words[1].cues & cue.PRONOUN and not words[0].cues & (cue.PRONOUN | cue.BENIGN):
                reason = "negated"  # "Strike that."
        for at, word in enumerate(words):
            if reason or word.cues == MARK:
                continue
            if word.cues & (cue.RETRACT | cue.WRONG) and not _excused(words, at):
                reason = "negated"
            elif word.cues & cue.GIVE_UP or (word.cues & cue.FIRST_PERSON and not _is_benign(words, at)):
                reason = "hedged"
            elif (
                word.cues & cue.REVISION
                and short
                and any(w.cues & (cue.PRONOUN | cue.NOUN | cue.INTERJECTION) for w in words[:at])
            ):
                reason = "negated"
            elif word.cues & cue.EXAMPLE and words[0].cues & cue.PRONOUN:
                reason = "hedged"  # "This is a placeholder."
            elif (
                word.cues & cue.HEDGE
                and words[0].cues & cue.PRONOUN
                and re.match(r"[^\d.]{0,20}\d", sentence[word.end :])
            ):
                reason = "hedged"
        if reason:
            return reason
        if end is None:
            return ""
        start = end.end()
    return ""


def _is_benign(words: list[Token], at: int) -> bool:
    """Tell whether "I" only offers help or tells how it was done; in a sentence after the answer it seldom does."""
    near = words[at : at + 4]
    return any(w.cues & cue.BENIGN for w in near) and not any(w.cues & cue.NEGATION for w in near)


def _stands_alone(words: list[Token], word: Token) -> bool:
    """Tell whether "no", "wait" is an exclamation: "No, that ..." and not "No remainder"."""
    following = words[words.index(word) + 1 :][:1]
    return not following or following[0].cues == MARK or bool(following[0].cues & (cue.PRONOUN | cue.INTERJECTION))


def _excused(words: list[Token], at: int) -> bool:
    """Tell whether something called wrong is not the answer: "no mistakes", "a common error", "option A is wrong"."""
    clause = clause_of(words, at)
    return any(w.cues & (cue.OTHER | cue.CONDITION | cue.IF) for w in clause) or any(
        w.cues & cue.NEGATION and not w.cues & cue.WRONG for w in clause
    )


def _denied(words: list[Token], text: str) -> str:
    """Find "that is not right", "nicht die Antwort", "this can't be" among the clauses."""
    at = 0
    while at < len(words):
        if words[at].cues == MARK:
            at += 1
            continue
        clause = clause_of(words, at)
        at += len(clause)
        if len(clause) == 1 and clause[0].cues & cue.INTERJECTION and not _VALUE_NEXT.match(text, clause[0].end):
            return "negated"
        negations = [i for i, w in enumerate(clause) if w.cues & cue.NEGATION]
        if not negations or len(clause) > 10 or any(w.cues & cue.OTHER for w in clause):
            continue
        if any(w.cues & cue.RIGHT for w in clause):
            return "negated"
        if any(w.cues & cue.NOUN for i in negations for w in clause[i : i + 4]):
            return "negated"
        if clause[0].cues & cue.PRONOUN and len(clause) <= 4:
            return "negated"
    return ""


def clause_span(words: list[Token], at: int) -> tuple[int, int]:
    """Where the clause around word `at`, between two marks, starts and ends."""
    start, end = at, at + 1
    while start and words[start - 1].cues != MARK:
        start -= 1
    while end < len(words) and words[end].cues != MARK:
        end += 1
    return start, end


def clause_of(words: list[Token], at: int) -> list[Token]:
    """The words of the clause around word `at`."""
    start, end = clause_span(words, at)
    return words[start:end]
