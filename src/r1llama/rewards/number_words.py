"""Whole numbers written in words, in the languages we grade, and clock times.

English is read by grammar below 10^12, Chinese and Japanese numerals below 10^12, the others from a table of 0 to
100 and the round numbers.
"""

import re
from functools import lru_cache

_UNDER_TWENTY = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen"""
_SMALL = {word: value for value, word in enumerate(_UNDER_TWENTY.split())}
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
# 0 to 19 (French to 16), then the tens, then further words with their values; `{t}` and `{u}` join tens and units.
_LANGUAGES = {
    "de": (
        """_ eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn
        siebzehn achtzehn neunzehn""",
        "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig", "{u}und{t}",
        "ein=1 eine=1 hundert=100 einhundert=100 tausend=1000 eintausend=1000 dutzend=12",
    ),
    "fr": (
        """zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept
        dix-huit dix-neuf""",
        "vingt trente quarante cinquante soixante", "{t}-{u}",
        "une=1 soixante-dix=70 quatre-vingts=80 quatre-vingt=80 quatre-vingt-dix=90 cent=100 mille=1000",
    ),
    "es": (
        """cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis
        diecisiete dieciocho diecinueve""",
        "veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa", "{t} y {u}",
        """un=1 una=1 veintiuno=21 veintiún=21 veintidós=22 veintitrés=23 veinticuatro=24 veinticinco=25 veintiséis=26
        veintisiete=27 veintiocho=28 veintinueve=29 cien=100 mil=1000""",
    ),
    "it": (
        """zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici
        diciassette diciotto diciannove""",
        "venti trenta quaranta cinquanta sessanta settanta ottanta novanta", "{t}{u}",
        "un=1 una=1 cento=100 mille=1000",
    ),
    "pt": (
        """zero um dois três quatro cinco seis sete oito nove dez onze doze treze catorze quinze dezesseis dezessete
        dezoito dezenove""",
        "vinte trinta quarenta cinquenta sessenta setenta oitenta noventa", "{t} e {u}",
        "uma=1 duas=2 quatorze=14 dezasseis=16 dezassete=17 dezanove=19 cem=100 mil=1000",
    ),
    "tr": (
        """sıfır bir iki üç dört beş altı yedi sekiz dokuz on on-bir on-iki on-üç on-dört on-beş on-altı on-yedi
        on-sekiz on-dokuz""",
        "yirmi otuz kırk elli altmış yetmiş seksen doksan", "{t} {u}", "yüz=100 bin=1000",
    ),
    "ru": (
        """ноль один два три четыре пять шесть семь восемь девять десять одиннадцать двенадцать тринадцать четырнадцать
        пятнадцать шестнадцать семнадцать восемнадцать девятнадцать""",
        "двадцать тридцать сорок пятьдесят шестьдесят семьдесят восемьдесят девяносто", "{t} {u}",
        "одна=1 две=2 сто=100 тысяча=1000",
    ),
}  # fmt: skip
_NUMERALS = {c: i for i, c in enumerate("〇一二三四五六七八九")} | {"零": 0, "两": 2, "兩": 2}
_PLACES = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_CLOCK = re.compile(r"(\d{1,2})[:.](\d{2})\s*(a|p)\.?\s?m\.?(?![a-z])", re.IGNORECASE)


@lru_cache(maxsize=1)
def _table() -> dict[str, int]:
    found: dict[str, int] = {}
    for language, (small, tens, joint, more) in _LANGUAGES.items():
        units = small.split()
        table = dict(zip(units, range(20), strict=True))
        for ten, word in enumerate(tens.split(), start=2):
            table[word] = 10 * ten
            for unit in range(1, 10):
                name = "ein" if language == "de" and unit == 1 else units[unit]
                stem = word[:-1] if language == "it" and name[0] in "uo" else word
                table[joint.format(t=stem, u=name)] = 10 * ten + unit
        if language == "fr":
            for unit in range(1, 20):
                table[f"quatre-vingt-{units[unit]}"] = 80 + unit
                if unit < 10:
                    table[f"soixante-{units[10 + unit]}"] = 70 + unit
            table |= {f"{t}-et-un": 10 * i + 1 for i, t in enumerate(tens.split(), start=2)} | {"soixante-et-onze": 71}
        table |= {word: int(value) for word, _, value in (entry.partition("=") for entry in more.split())}
        for word, value in table.items():
            found.setdefault(word.replace("-", " "), value)
    return found


def number_from_words(text: str) -> int | None:
    """Read a number written in words; None for any other text."""
    spelled = re.sub(r"[\s-]+", " ", text.strip().lower().rstrip("."))
    value = _english(spelled.split(" "))
    return value if value is not None else _table().get(spelled, _numerals(spelled))


def _english(words: list[str]) -> int | None:
    if not 1 <= len(words) <= 16 or not words[0].isalpha():
        return None
    total = current = 0
    last = ""  # the kind of the word before: "", "unit", "tens", "hundred", "scale", "and"
    for word in words:
        if word in _SMALL and last in ("", "tens", "hundred", "scale", "and"):
            if last == "tens" and not 1 <= _SMALL[word] <= 9:
                return None
            current, last = current + _SMALL[word], "unit"
        elif word in _TENS and last in ("", "hundred", "scale", "and"):
            current, last = current + _TENS[word], "tens"
        elif word == "hundred" and last == "unit" and 1 <= current <= 99:
            current, last = current * 100, "hundred"
        elif word in _SCALES and last in ("unit", "tens", "hundred") and (not total or total > _SCALES[word]):
            total, current, last = total + current * _SCALES[word], 0, "scale"
        elif word == "and" and last in ("hundred", "scale"):
            last = "and"
        else:
            return None
    return None if last == "and" else total + current


def _numerals(text: str) -> int | None:
    """Read Chinese and Japanese numerals: 四十二, 三百零五, 一万二千."""
    if not text or not all(c in _NUMERALS or c in _PLACES or c in _MYRIADS for c in text) or len(text) > 20:
        return None
    total = section = digit = 0
    last_place = 10**4
    for i, c in enumerate(text):
        if c in _NUMERALS:
            if digit and i and text[i - 1] in _NUMERALS:
                return None  # digit by digit is no number here
            digit = _NUMERALS[c]
        elif c in _PLACES:
            if _PLACES[c] >= last_place:
                return None
            last_place = _PLACES[c]
            section, digit = section + (digit or 1) * last_place, 0
        else:
            total, section, digit, last_place = total + (section + digit) * _MYRIADS[c], 0, 0, 10**4
    return total + section + digit


def clock_times(text: str) -> list[tuple[int, int]]:
    """Return the times of day with a.m. or p.m. in `text`, as (hour of 24, minute)."""
    return [
        (int(hour) % 12 + (12 if half.lower() == "p" else 0), int(minute))
        for hour, minute, half in _CLOCK.findall(text)
    ]
