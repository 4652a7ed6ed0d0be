"""Language consistency: the share of the chain of thought that is in the language of the prompt.

Source of the idea: the DeepSeek-R1 report, arXiv 2501.12948, which rewards the share of target-language words. Maths,
code, markup and numbers belong to no language and are not counted.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from .text import Completion, aligned, completion_text, prompt_text

Detector = Callable[[str], str | None]

# Language -> the scripts it is written in, by the first word of Unicode character names.
_SCRIPTS = {
    "zh": {"CJK"}, "ja": {"HIRAGANA", "KATAKANA", "CJK"}, "ko": {"HANGUL", "CJK"}, "ru": {"CYRILLIC"},
    "uk": {"CYRILLIC"}, "bg": {"CYRILLIC"}, "ar": {"ARABIC"}, "fa": {"ARABIC"}, "ur": {"ARABIC"}, "he": {"HEBREW"},
    "el": {"GREEK"}, "hi": {"DEVANAGARI"}, "bn": {"BENGALI"}, "ta": {"TAMIL"}, "th": {"THAI"}, "ka": {"GEORGIAN"},
    "hy": {"ARMENIAN"},
}  # fmt: skip
_LATIN = {"LATIN"}
# Frequent words that few of the other languages share; they decide between Latin-script languages.
_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and is are that this with for we so then have which be it was from each has you would",
        "de": "der die das und ist nicht ein eine wir sind mit für auf dass also dann wenn sie ich zu den",
        "fr": "le les des est une et nous que pour dans donc sur pas avec qui sont alors cela au ce il du",
        "es": "el los las es una y que por para con se del entonces son está pero como si hay más tiene",
        "it": "il gli che è una di per con non sono quindi della questo abbiamo poi allora più ogni ha dei",
        "pt": "os uma não que para com são então por isso temos mais da do das cada ele ela você é",
        "tr": "ve bir bu için ile olarak olur var değil her daha ise sonra kadar önce biz toplam de da",
        "nl": "het een en van dat niet is we zijn met voor dus ook wordt hebben als dan er aan",
        "pl": "jest nie się na to że do są tak więc oraz ponieważ dla ma po jak czy od tego",
        "sv": "och att det är som en för inte vi har med av den till på så om då",
        "id": "yang dan di ini itu dengan untuk adalah dari kita tidak akan jadi ada pada juga oleh",
        "vi": "là và của có không cho một các được này với chúng ta vậy thì để trong",
        "ro": "și este nu că pentru care sunt din cu la avem deci mai în pe o",
        "cs": "je že se na to pro jsou tak ale který máme tedy jako není by po",
    }.items()
}
_NOT_LANGUAGE = re.compile(
    r"```.*?(?:```|$)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\begin\{.*?\\end\{[a-z*]*\}"
    r"|\\[a-zA-Z]+(?:\{[^{}]*\})*|</?\w+>|https?://\S+|[\w.]*[_=<>^/*+]\S*|\b[a-zA-Z]\b",
    re.DOTALL,
)
_SEGMENT = re.compile(r"[^.!?。！？\n;:]+")


def strip_neutral(text: str) -> str:
    """Remove what belongs to no language: code, maths, markup, links, single letters."""
    return _NOT_LANGUAGE.sub(" ", text)


@cache
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0]


def scripts_of(text: str) -> Counter[str]:
    """Count the letters of each script; a Chinese or Japanese character counts like a short word's three letters."""
    counts: Counter[str] = Counter()
    for character in text:
        if character.isalpha():
            script = _script(character)
            counts[script] += 3 if script in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL") else 1
    return counts


def by_words(text: str) -> str | None:
    """Detect a language by script, and by frequent words among the Latin ones; None when unsure. Needs no package."""
    counts = scripts_of(text)
    if not counts:
        return None
    if counts["HIRAGANA"] + counts["KATAKANA"] > 0.1 * counts.total():
        return "ja"
    (main, _), *_ = counts.most_common(1)
    if main != "LATIN":
        return next((language for language, scripts in _SCRIPTS.items() if main in scripts), None)
    words = re.findall(r"[^\W\d_]+", text.lower())
    hits = Counter({language: sum(w in known for w in words) for language, known in _WORDS.items()})
    (best, most), (_, second) = hits.most_common(2)
    return best if most >= 2 and most > second else None


def _by_py3langid(text: str) -> str | None:
    import py3langid

    return py3langid.classify(text)[0] if scripts_of(text).total() >= 12 else None


DETECTORS: dict[str, Detector] = {
    "words": by_words,
    "py3langid": _by_py3langid,
}


class LanguageConsistencyReward:
    """The share of the chain of thought, by letters, that is in the language of the prompt: 0.0 to 1.0.

    Each sentence counts as a whole where its language is certain; where it is not, the letters of a foreign script
    still count against it. None where the prompt's language is unknown or the thoughts hold fewer than ten letters.

    Args:
        detector: "words" (scripts and frequent words; no package needed), "py3langid" (the extra `lang`), or a
            callable from text to an ISO 639-1 code or None. It is asked only about sentences that `by_words` leaves
            open, and about prompts.
        language: the wanted language, an ISO 639-1 code; None takes the column `language`, else the prompt's.

    Raises:
        ValueError: unknown detector.
        ImportError: its package is not installed.
    """

    __name__ = "language_consistency_reward"

    def __init__(self, detector: str | Detector = "words", language: str | None = None):
        if isinstance(detector, str):
            if detector not in DETECTORS:
                raise ValueError(f"unknown detector {detector!r}: one of {', '.join(DETECTORS)}")
            DETECTORS[detector]("one sentence, so that a missing package is noticed now")
        self.detector, self.language = detector, language

    def detect(self, text: str) -> str | None:
        """Return the ISO 639-1 code of a text, or None."""
        found = by_words(text)
        if found is None and self.detector != "words":
            detector = DETECTORS[self.detector] if isinstance(self.detector, str) else self.detector
            found = detector(text)
        return found

    def consistency(self, thoughts: str, language: str) -> float | None:
        """Return the share of `thoughts` in `language`, or None when there is too little text."""
        wanted = _SCRIPTS.get(language, _LATIN)
        right = total = 0
        for segment in _SEGMENT.findall(strip_neutral(thoughts)):
            counts = scripts_of(segment)
            size = counts.total()
            if not size:
                continue
            total += size
            inside = sum(counts[script] for script in wanted)
            found = self.detect(segment) if inside == size else None
            # A script shared by languages does not tell them apart, nor do a few Chinese characters.
            shared = found in _SCRIPTS and _SCRIPTS[found] == wanted
            few = {found, language} <= {"zh", "ja", "ko"} and size < 18
            if found is None or found == language or shared or few:
                right += inside
        return right / total if total >= 10 else None

    def __call__(
        self,
        completions: Sequence[Completion],
        prompts: Sequence[Completion] | None = None,
        language: Sequence[str] | None = None,
        **kwargs,
    ) -> list[float | None]:
        n = len(completions)
        rewards: list[float | None] = []
        for completion, prompt, column in zip(completions, aligned(prompts, n), aligned(language, n), strict=True):
            wanted = self.language or column or self.detect(strip_neutral(prompt_text(prompt)))
            text = completion_text(completion)
            thoughts = text.partition("</think>")[0].rpartition("<think>")[2]
            rewards.append(self.consistency(thoughts, wanted) if wanted else None)
        return rewards


language_consistency_reward = LanguageConsistencyReward()
