"""Whether the words before an answer stand by it: none may negate, doubt, suppose or report it.

What follows it is read in `retraction`; the cues, in all languages, are in `lexicon`.
"""

import re

from . import lexicon as cue
from .lexicon import MARK, Token, tokens
from .phrases import LEAD, LEADS_IN
from .retraction import SENTENCE_END, clause_of, clause_span, doubt_beside
from .units import canonical_unit

_DRESS = " \t\n$*_`\"'“”«»„「」()[]{}:：>#\\"
_REFLEXIVE = ("si", "se")  # "if", but also pronouns: they suppose only what a comma ends
_ENGLISH = re.compile(r"\b(?:answer|ans|result|solution|option|choice)\b", re.IGNORECASE)
_SLIPS = ("forget", "forgot", "ignore", "omit", "skip", "overlook", "neglect", "misread")
_DOUBTFUL_IF = cue.RIGHT | cue.FIRST_PERSON | cue.WRONG | cue.HEDGE  # "if I am right", "if this is wrong"


def sentence_before(section: str, start: int) -> str:
    """Return the sentence that leads to `start`, with the line above where that line announces it."""
    line_start = section.rfind("\n", 0, start) + 1
    line = section[max(line_start, start - 400) : start]
    sentence = SENTENCE_END.split(line)[-1]
    if sentence.strip(_DRESS):
        return sentence
    above = section[max(0, start - 400) : start].rstrip(_DRESS[:-1].replace(":", "").replace("：", "") + "\\")
    above = above.rpartition("\n")[2]
    if above.endswith((".", "!", "?", "。")):
        return ""
    leads = above.endswith((":", "：")) or any(word.cues & cue.EXAMPLE for word in tokens(above))
    return above if leads else ""


def doubt_before(text: str, announcement: str = "") -> str:
    """Return why the words before a value, in its sentence, take it away ("negated", "hedged"), or "".

    Args:
        text: what stands before the value, or before the words that announce it.
        announcement: the words between, "the answer is" or none.
    """
    words = tokens(text.rstrip(_DRESS.replace(":", "") if announcement else _DRESS))
    if (
        announcement
        and words
        and words[-1].cues & cue.THAT
        and not any(w.cues & (cue.ASSERTION | cue.RESET) for w in words[-6:-1])
    ):
        return "hedged"  # "the claim that", "prove that", "one would think that"
    if _ENGLISH.search(announcement) and not _leads_in(words):
        return "hedged"
    same_clause, comma, counterfactual = True, False, any(w.cues & cue.COUNTERFACTUAL for w in tokens(announcement))
    for at in range(len(words) - 1, -1, -1):
        word, cues = words[at], words[at].cues
        if cues == MARK and words[-1].cues & cue.THAT and at == len(words) - 2:
            continue  # "I do not think, that": the comma before a clause of this kind parts nothing
        if cues == MARK:
            if word.text in ";；؛":
                return ""
            if same_clause and at and words[at - 1].cues & cue.HEDGE and (at < 2 or words[at - 2].cues == MARK):
                return "hedged"  # "Perhaps, the answer is"
            same_clause, comma = False, comma or word.text in ",،，、"
            continue
        if cues & cue.RETRACT and not _resists(words, at):
            return "negated"
        if words[-1].cues & cue.THAT and cues & cue.WRONG:
            return "negated"
        if same_clause and cues & (cue.NEGATION | cue.WRONG) and not _of_the_subject(words, at, bool(announcement)):
            return "negated"
        if same_clause and cues & cue.HEDGE:
            return "hedged"
        counterfactual = counterfactual or bool(cues & cue.COUNTERFACTUAL)
        if cues & (cue.EXAMPLE | cue.GIVE_UP | cue.QUESTION | cue.CONDITION):
            return "hedged"
        if cues & cue.REPORT and not any(
            w.cues & cue.SELF for w in (*words[max(0, at - 1) : at], *words[at + 1 : at + 4])
        ):
            return "hedged"
        if cues & cue.IF and (comma or word.text not in _REFLEXIVE):
            # "If each box holds 6" repeats what is given; "if I am right" and "if it had been even" do not.
            marked = any(w.cues == MARK for w in words[at:])
            if (
                counterfactual
                or not marked
                or any(w.cues & _DOUBTFUL_IF or w.text in _SLIPS for w in clause_of(words, at))
            ):
                return "hedged"
        if cues & cue.RESET:
            return ""
    return ""


def _leads_in(words: list[Token]) -> bool:
    """Tell whether what stands directly before "the answer is" only leads on to it: "so", "since ...", "in total".

    A closed list: "Someone posted", "Last year", "Were n odd" and whatever else we do not know say something else.
    """
    start = len(words)
    while start and words[start - 1].cues != MARK:
        start -= 1
    last = words[start:]
    while last and last[-1].text in ("the", "a", "our", "my", "la", "le"):
        last.pop()
    first = words[0] if words else None
    if first and first.text in ("had", "were", "should", "could"):
        return False
    return (
        not last
        or last[0].text in LEADS_IN
        or last[0].text.endswith("ly")
        or all(w.cues & cue.SELF for w in last)
        or bool(last[0].cues & (cue.RELATIVE | cue.JOIN | cue.IF))
        or any(w.cues & (cue.RESET | cue.ASSERTION) for w in last)
    )


def _resists(words: list[Token], at: int) -> bool:
    """Tell whether "I disregard the embedded instruction" refuses to follow what the task tries to slip in."""
    return bool(at and words[at - 1].cues & cue.FIRST_PERSON) and any(
        w.text.startswith("instruction") for w in words[at + 1 : at + 5]
    )


def _of_the_subject(words: list[Token], at: int, announced: bool) -> bool:
    """Tell whether a negation is part of what is counted: "those who do not play are", "since it is not even"."""
    start, end = clause_span(words, at)
    governed = any(
        w.cues & cue.RELATIVE or (w.text == "that" and words[i + 1].cues & cue.COPULA)
        for i, w in enumerate(words[start:at], start=start)
    )
    return governed and (announced or end - at > 3 or any(w.cues & cue.COPULA for w in words[at + 1 :]))


def doubt_in(text: str, several: bool = False) -> str:
    """Return why a whole statement commits to nothing ("negated", "hedged"), or ""."""
    words = tokens(text)
    number = re.search(r"\d[\d.,]*", text)
    value_at, value_end = number.span() if number else (len(text), len(text))
    before = [w for w in words if w.start < value_at and w.cues != MARK]
    for at, word in enumerate(words):
        if word.cues == MARK or word.text in _REFLEXIVE:
            continue
        if word.start < value_at and word.cues & (cue.NEGATION | cue.WRONG) and not _of_the_subject(words, at, False):
            return "negated"
        if word.cues & (
            cue.HEDGE
            | cue.CONDITION
            | cue.IF
            | cue.OTHERWISE
            | cue.REPORT
            | cue.GIVE_UP
            | cue.EXAMPLE
            | cue.QUESTION
            | cue.OPINION
            | cue.RETRACT
        ):
            return "hedged"
    if any(w.cues & cue.COMPARE for w in before[-2:]):
        return "hedged"
    if sum(bool(w.cues & cue.COUNTERFACTUAL) for w in words) > 1:
        return "hedged"
    nouns = [w for w in before if w.cues & cue.NOUN]
    if nouns and ":" not in text[nouns[-1].end : value_at]:
        # Only words of a closed list may link "the answer" to its number: "has 42 digits" says something else.
        copulas = [w for w in before if w.cues & cue.COPULA and w.start > nouns[-1].start]
        link = [w for w in before if w.start > (copulas or nouns)[-1].start]
        aside = [w for w in before if copulas and nouns[-1].start < w.start < copulas[-1].start]
        if not all(
            w.cues & (cue.RESET | cue.SELF) or w.text in LEAD or canonical_unit(w.text) for w in (*link, *aside)
        ):
            return "hedged"
    return doubt_beside(text[value_end:], several)
