"""Whether the words around an answer stand by it: nothing before it may negate, doubt, suppose or report it, and
nothing after it may take it back or put another beside it. The cues, in all languages, are in `lexicon`.
"""

import re

from .lexicon import (
    BENIGN,
    COMPARE,
    CONCESSION,
    CONDITION,
    COPULA,
    COUNTERFACTUAL,
    EXAMPLE,
    FIRST_PERSON,
    GIVE_UP,
    HEDGE,
    IF,
    INTERJECTION,
    JOIN,
    MARK,
    NEGATION,
    NOUN,
    OPINION,
    OR,
    OTHER,
    OTHERWISE,
    PRONOUN,
    QUESTION,
    RELATIVE,
    REPORT,
    RESET,
    RETRACT,
    REVISION,
    RIGHT,
    SELF,
    WRONG,
    Token,
    tokens,
)
from .phrases import LEAD

SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bz\.B)(?<!\bp\.ex)(?<!\bcf)[.!?؟](?=[\s\"'»”)\]*]|$)|[。！？।]|\n"
)
REACH = 1500  # characters after an answer in which it may be taken back
_DRESS = " \t\n$*_`\"'“”«»„「」()[]{}:：>#\\"
_VALUE_NEXT = re.compile(r"[\s$*(\\\[{]*-?[\s$*(\\\[{]*(?:\d|frac|sqrt|boxed)")
_STRUCK_MARK = re.compile(r"[\s$*()\"'`.,!;:\\\[\]\-–—]{0,12}[✗✘❌✖🚫❎👎]")
_REFLEXIVE = ("si", "se")  # "if", but also pronouns: they suppose only what a comma ends
_ANOTHER = re.compile(r"\s*\$?\s*[,;/|&]\s*[-$]*\d")


def sentence_before(section: str, start: int) -> str:
    """Return the sentence that leads to `start`, with the line above where that line announces it."""
    line_start = section.rfind("\n", 0, start) + 1
    line = section[max(line_start, start - 400) : start]
    sentence = SENTENCE_END.split(line)[-1]
    if sentence.strip(_DRESS):
        return sentence
    above = section[max(0, start - 400) : start].rstrip(_DRESS[:-1].replace(":", "").replace("：", "") + "\\")
    above = above.rpartition("\n")[2]
    leads = above.endswith((":", "：")) or any(word.cues & EXAMPLE for word in tokens(above))
    return above if leads and not above.endswith((".", "!", "?", "。")) else ""


def doubt_before(text: str, announcement: str = "") -> str:
    """Return why the words before a value, in its sentence, take it away ("negated", "hedged"), or "".

    Args:
        text: what stands before the value, or before the words that announce it.
        announcement: the words between, "the answer is" or none.
    """
    words = tokens(text.rstrip(_DRESS.replace(":", "") if announcement else _DRESS))
    same_clause, comma, counterfactual = True, False, any(w.cues & COUNTERFACTUAL for w in tokens(announcement))
    for at in range(len(words) - 1, -1, -1):
        word, cues = words[at], words[at].cues
        if cues == MARK:
            if word.text in ";；؛":
                return ""
            if same_clause and at and words[at - 1].cues & HEDGE and (at < 2 or words[at - 2].cues == MARK):
                return "hedged"  # "Perhaps, the answer is"
            same_clause, comma = False, comma or word.text in ",،，、"
            continue
        if cues & RETRACT:
            return "negated"
        if same_clause and cues & (NEGATION | WRONG) and not _of_the_subject(words, at, bool(announcement)):
            return "negated"
        if same_clause and cues & HEDGE:
            return "hedged"
        counterfactual = counterfactual or bool(cues & COUNTERFACTUAL)
        if cues & (EXAMPLE | GIVE_UP | QUESTION | CONDITION):
            return "hedged"
        if cues & REPORT and not (at and words[at - 1].cues & SELF):
            return "hedged"
        if cues & IF and (comma or word.text not in _REFLEXIVE):
            # "If each box holds 6" repeats what is given; "if I am right" and "if it had been even" do not.
            marked = any(w.cues == MARK for w in words[at:])
            if (
                counterfactual
                or not marked
                or any(w.cues & (RIGHT | FIRST_PERSON | WRONG) for w in _clause(words, at))
            ):
                return "hedged"
        if cues & RESET:
            return ""
    return ""


def _of_the_subject(words: list[Token], at: int, announced: bool) -> bool:
    """Tell whether a negation is part of what is counted: "those who do not play are", "since it is not even"."""
    start, end = at, at + 1
    while start and words[start - 1].cues != MARK:
        start -= 1
    while end < len(words) and words[end].cues != MARK:
        end += 1
    governed = any(
        w.cues & RELATIVE or (w.text == "that" and words[i + 1].cues & COPULA)
        for i, w in enumerate(words[start:at], start=start)
    )
    return governed and (announced or end - at > 3 or any(w.cues & COPULA for w in words[at + 1 :]))


def doubt_after(text: str, several: bool = False) -> str:
    """Return why what follows a value takes it back or puts another beside it ("negated", "hedged"), or "".

    Args:
        several: the question has several values, so "or" joins them.
    """
    text = text[:REACH]
    if _STRUCK_MARK.match(text):
        return "negated"
    if not several and _ANOTHER.match(text):
        return "hedged"
    end = SENTENCE_END.search(text)
    own, rest = (text[: end.start()], text[end.end() :]) if end else (text, "")
    if end and end[0] in "?？؟":
        return "hedged"
    return doubt_beside(own, several) or _taken_back(rest)


def doubt_beside(text: str, several: bool) -> str:
    """Return why the rest of the value's own sentence takes it back ("negated", "hedged"), or ""."""
    words = tokens(text)
    own_clause, reasons = True, False
    for at, word in enumerate(words):
        cues = word.cues
        if cues == MARK:
            own_clause = own_clause and word.text in "()"
            continue
        if not at and cues & INTERJECTION and _stands_alone(words, word) and re.search(r"\d", text):
            return "negated"
        if cues & OR and not several and _VALUE_NEXT.match(text, word.end):
            return "hedged"
        reasons = reasons or bool(cues & RELATIVE)
        if cues & (RELATIVE | JOIN | RESET):
            own_clause = False
        if cues & NEGATION and own_clause and not _VALUE_NEXT.match(text, word.end):
            return "negated"
        if cues & WRONG and not _excused(words, at):
            return "negated"
        if cues & (RETRACT | GIVE_UP) and not _excused(words, at):
            return "negated"
        if cues & HEDGE and re.match(r"[^\d.]{0,20}\d", text[word.end :]):
            return "hedged"
        if cues & (CONCESSION | EXAMPLE):
            return "hedged"
        if cues & REPORT and not reasons and not words[at - 1].cues & SELF:
            return "hedged"
        if not reasons and cues & (HEDGE | CONDITION | IF | OTHERWISE | QUESTION):
            return "hedged"
        if cues & COMPARE and own_clause and at < 2:
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
        if first is not None and not reason:
            digit = re.search(r"\d", sentence)
            if first.cues & INTERJECTION and (_stands_alone(words, first) or (digit and len(words) <= 8)):
                reason = "negated"
            elif (first.cues & (OR | HEDGE) and digit) or first.cues & CONCESSION:
                reason = "hedged"
            elif len(words) == 2 and words[1].cues & PRONOUN and not words[0].cues & (PRONOUN | BENIGN):
                reason = "negated"  # "Strike that."
        for at, word in enumerate(words):
            if reason or word.cues == MARK:
                continue
            if word.cues & (RETRACT | WRONG) and not _excused(words, at):
                reason = "negated"
            elif word.cues & GIVE_UP or (word.cues & FIRST_PERSON and not _is_benign(words, at)):
                reason = "hedged"
            elif word.cues & REVISION and re.search(r"\d", sentence[word.end :]):
                reason = "negated"
            elif word.cues & HEDGE and re.match(r"[^\d.]{0,20}\d", sentence[word.end :]):
                reason = "hedged"
        if reason:
            return reason
        if end is None:
            return ""
        start = end.end()
    return ""


def _is_benign(words: list[Token], at: int) -> bool:
    """Tell whether "I" only offers help or tells how it was done; in a sentence after the answer it seldom does."""
    return any(w.cues & BENIGN for w in words[at : at + 4])


def _stands_alone(words: list[Token], word: Token) -> bool:
    """Tell whether "no", "wait" is an exclamation: "No, that ..." and not "No remainder"."""
    following = words[words.index(word) + 1 :][:1]
    return not following or following[0].cues == MARK or bool(following[0].cues & (PRONOUN | INTERJECTION))


def _excused(words: list[Token], at: int) -> bool:
    """Tell whether something called wrong is not the answer: "no mistakes", "a common error", "option A is wrong"."""
    clause = _clause(words, at)
    return any(w.cues & (OTHER | CONDITION | IF) for w in clause) or any(
        w.cues & NEGATION and not w.cues & WRONG for w in clause
    )


def _clause(words: list[Token], at: int) -> list[Token]:
    start, end = at, at + 1
    while start and words[start - 1].cues != MARK:
        start -= 1
    while end < len(words) and words[end].cues != MARK:
        end += 1
    return words[start:end]


def _denied(words: list[Token], text: str) -> str:
    """Find "that is not right", "nicht die Antwort", "this can't be" among the clauses."""
    at = 0
    while at < len(words):
        if words[at].cues == MARK:
            at += 1
            continue
        clause = _clause(words, at)
        at += len(clause)
        if len(clause) == 1 and clause[0].cues & INTERJECTION and not _VALUE_NEXT.match(text, clause[0].end):
            return "negated"
        negations = [i for i, w in enumerate(clause) if w.cues & NEGATION]
        if not negations or len(clause) > 10 or any(w.cues & OTHER for w in clause):
            continue
        if any(w.cues & RIGHT for w in clause):
            return "negated"
        if any(w.cues & NOUN for i in negations for w in clause[i : i + 4]):
            return "negated"
        if clause[0].cues & PRONOUN and len(clause) <= 4:
            return "negated"
    return ""


def doubt_in(text: str, several: bool = False) -> str:
    """Return why a whole statement commits to nothing ("negated", "hedged"), or ""."""
    words = tokens(text)
    number = re.search(r"\d[\d.,]*", text)
    value_at, value_end = number.span() if number else (len(text), len(text))
    before = [w for w in words if w.start < value_at and w.cues != MARK]
    for at, word in enumerate(words):
        if word.cues == MARK or word.text in _REFLEXIVE:
            continue
        if word.start < value_at and word.cues & (NEGATION | WRONG) and not _of_the_subject(words, at, False):
            return "negated"
        if word.cues & (
            HEDGE | CONDITION | IF | OTHERWISE | REPORT | GIVE_UP | EXAMPLE | QUESTION | OPINION | RETRACT
        ):
            return "hedged"
    if any(w.cues & COMPARE for w in before[-2:]):
        return "hedged"
    if sum(bool(w.cues & COUNTERFACTUAL) for w in words) > 1:
        return "hedged"
    nouns = [w for w in before if w.cues & NOUN]
    if nouns and ":" not in text[nouns[-1].end : value_at]:
        # Only words of a closed list may link "the answer" to its number: "has 42 digits" says something else.
        copulas = [w for w in before if w.cues & COPULA and w.start > nouns[-1].start]
        link = [w for w in before if w.start > (copulas or nouns)[-1].start]
        if not all(w.cues & RESET or w.text in LEAD for w in link):
            return "hedged"
    return doubt_beside(text[value_end:], several)


# "not 41 but 42" in each language, with the copula that stays: only what follows the conjunction is said.
_SHORT = r"[^.,;!?。，；\n]{1,40}?"
_CONTRASTS = (
    (r"\bnot\s+{x},?\s+(?:but|rather)\s+(?:rather\s+)?", ""),
    (r"\bnicht\s+{x},?\s+sondern\s+", ""),
    (r"\bn['’](est|était)\s+pas\s+{x},?\s+mais\s+", r"\1 "),
    (r"\bno\s+(es|son|era)\s+{x},?\s+sino\s+(?:que\s+(?:es|son)\s+)?", r"\1 "),
    (r"\bnon\s+(è|sono)\s+{x},?\s+(?:ma|bensì)\s+", r"\1 "),
    (r"\bnão\s+(é|são)\s+{x},?\s+(?:mas(?:\s+sim)?|e\s+sim)\s+", r"\1 "),
    (r"(?<=\s){x}\s+değil,?\s+", ""),
    (r"\bне\s+{x},?\s+а\s+", ""),
    (r"不(是){x}[,，]?\s*而是", r"\1"),
    (r"(?<=は){x}(?:ではなく|じゃなく)[、,]?\s*", ""),
    (r"(?<=[은는]\s){x}(?:이|가)\s*아니라\s*", ""),
    (r"(?:ليس|ليست)\s+{x}\s+بل\s+", "هو "),
    (r"(?<=\s){x}\s+नहीं,?\s+बल्कि\s+", ""),
)
_CONTRAST = [(re.compile(pattern.replace("{x}", _SHORT), re.IGNORECASE), kept) for pattern, kept in _CONTRASTS]
_CONTRASTING = re.compile(
    r"\b(?:but|rather|sondern|mais|sino|ma|bensì|mas|sim|değil|а)\b|而是|なく|아니라|بل|बल्कि", re.IGNORECASE
)


def assert_contrast(text: str) -> str:
    """Rewrite "not 41 but 42" as "42", in every language."""
    if _CONTRASTING.search(text):
        for pattern, kept in _CONTRAST:
            text = pattern.sub(kept, text)
    return text
