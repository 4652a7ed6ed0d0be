"""How people and models announce an answer, in the languages we grade. What takes it back is in `lexicon`."""

import re

_NOUNS = """answer ans result solution option choice antwort endergebnis ergebnis lösung respuesta resultado solución
    opción réponse résultat risposta risultato soluzione opzione resposta solução opção""".split()  # noqa: SIM905
_SELF_STATING = "cevap cevabı yanıt yanıtı sonuç ответ ответом результат".split()  # noqa: SIM905 (no copula needed)
# What may stand before the noun: with any other word ("wrong answer", "Tom's answer") it is not this answer.
PLAIN_QUALITIES = frozenset(
    """the final our my correct right required requested desired exact numerical numeric simplified overall only
    best complete full so thus therefore hence then and is your expected_ single die das der dem richtige
    richtiges korrekte korrektes endgültige endgültiges gesuchte gesuchtes finale meine unsere also somit la le
    l el mi nuestra nuestro bonne ma notre il lo mia nostra a o minha nossa quindi donc portanto logo doğru
    kesin nihai son sorunun problemin olarak halde als правильный верный окончательный итоговый наш мой
    правильным верным total""".split()  # noqa: SIM905
)
_QUALITIES_AFTER = """final finale finales correcta correcto correcte corretta corretto correta correto exacta exacte
    juste giusta giusto esatta exata certa buscada buscado""".split()  # noqa: SIM905
_FILLERS = """then thus therefore hence simply just clearly actually exactly indeed now also definitely certainly
    donc ainsi bien somit daher folglich entonces luego quindi dunque então portanto""".split()  # noqa: SIM905
_OF = """to of for auf zu zur der des von à de du a al del della alla di da do sur""".split()  # noqa: SIM905
_WHOLE = """problem question exercise puzzle equation computation calculation expression task équation système frage
    aufgabe gleichung part
    problème exercice pregunta problema
    ejercicio ecuación domanda esercizio pergunta questão exercício""".split()  # noqa: SIM905
_COPULAS = r"""is|was|equals|=|will\s+be|would\s+be|should\s+be|must\s+be|has\s+to\s+be|comes\s+(?:out\s+)?to|are
    |ist|lautet|beträgt|est|es|è|é|sería|serait|sarebbe|seria|wäre"""

_filler = rf"(?:\s+(?:{'|'.join(_FILLERS)})\b)*"
# "the answer is", "Final answer:", "**Answer**:", "Die richtige Antwort lautet also", "答案是".
PHRASE = re.compile(
    rf"""
    (?<!\w)(?:(?P<quality>[^\W\d_]+)[ \t]+|l['’])?(?:{"|".join(_NOUNS)})\b\.?(?:\s+(?:{"|".join(_QUALITIES_AFTER)})\b)?
        (?:\s+(?:{"|".join(_OF)})\b(?:\s+(?!{_COPULAS})\w+){{0,3}}?\s*(?:l['’])?(?:{"|".join(_WHOLE)})\b(?:\s+\(?\w\)?(?=\s))?)?
        {_filler}
        [*_]{{0,3}}\s*
        (?:(?:{_COPULAS})(?!\w){_filler}\s*(?:equal\s+to\b)?\s*:?|[:：→]|\s[—–]\s|=(?!=)|(?=[*_]*\s*\n))
    |\b(?:choose|pick|select)\s+(?:option|choice|answer)\s+(?=\(?[A-J]\)?\.?\s*$)
    |\b(?:ist|lautet|beträgt)\s+(?:(?:also|somit|daher|demnach)\s+)?(?:die|das)\s+(?:(?:richtige|gesuchte|endgültige)\s+)?
        (?:antwort|endergebnis|ergebnis|lösung)(?=\s+[-$\\(*\d])
    |(?<!\w)(?:(?P<quality2>[^\W\d_]+)[ \t]+)?(?:{"|".join(_SELF_STATING)})\b\s*
        (?:[:=]|şudur:?|(?:[—–-]|является)?(?=\s*[-$\\(*\d]))
    |(?:最终|正确)?(?:答案|結果|结果)(?:应该|就|應該)?(?:是|为|為|等于|[:：=])\s*|(?:故|应|應)(?:选|選)\s*(?=[A-Z])
    |(?<!\w)答(?:案)?[:：]\s*|(?:最終的な|正しい)?(?:答え|解答|答案|正解)(?:は|[:：=])\s*
    |(?:정답|답)(?:은|는|[:：=])\s*
    |(?:अंतिम\s+|सही\s+)?उत्तर\s*(?:है|[:=]|(?=\s*[-$\\(*\d]))
    |(?:الجواب|الإجابة|الاجابة|الناتج|النتيجة)(?:\s+(?:النهائي|النهائية|الصحيح|الصحيحة))?\s*
        (?:هو|هي|[:=]|(?=\s*[-$\\(*\d]))\s*
    """,
    re.IGNORECASE | re.VERBOSE,
)

# Steps have results too: these announce the answer only where nothing else does.
WEAK_PHRASE = re.compile(
    r"result|solution|ergebnis|lösung|résultat|resultado|risultato|soluci|soluzione|solução|sonuç|結果|结果|الناتج|النتيجة"
    r"|\b(?:first|second|third|fourth|last|previous|next|intermediate|partial|his|her|their|this|that|['’]s)\s+answer",
    re.IGNORECASE,
)

# Every PHRASE contains one of these in lower case; finding them is much cheaper than trying the pattern everywhere.
KEYWORDS = (
    *("ans." if noun == "ans" else noun for noun in _NOUNS), "ans:", *_SELF_STATING, "答案", "結果", "结果", "答え",
    "解答", "正解", "答：", "答:", "故选", "应选", "故選", "應選", "정답", "답", "الجواب", "الإجابة", "الاجابة",
    "الناتج", "النتيجة", "उत्तर",
)  # fmt: skip

ASCII_KEYWORDS = tuple(keyword for keyword in KEYWORDS if keyword.isascii())

# What may directly precede "the answer is", besides conjunctions and adverbs.
LEADS_IN = frozenset(
    """in after by for from with at on as to using adding combining multiplying dividing subtracting summing putting
    solving simplifying substituting rounding counting then now and finally overall altogether here also next step
    answer conclusion summary final solution result yes no ok okay right well good great done q a""".split()  # noqa: SIM905
)

# What may stand between "the answer is" and its number; any other word says something else ("worth 10 points").
LEAD = frozenset(
    """in want wanted need needed seek sought looking for get obtain asked works turns comes out should must will
    therefore then the a an exactly precisely simply just only equal to approximately approx about around
    roughly be that of total value number sum amount minus negative plus option choice x y z n k m der die das
    ein eine genau exakt gleich etwa ungefähr rund circa ca insgesamt zahl wert le la un une exactement environ
    égale égal à nombre el exactamente igual aproximadamente número valor il lo esattamente uguale pari numero
    valore o um exatamente tam olarak yaklaşık ровно равен равно примерно число""".split()  # noqa: SIM905
)

# The copula that some languages put after the value: 42です, 42입니다, 42'dir.
COPULA_SUFFIX = re.compile(
    r"(?<=[\d%〇一二三四五六七八九十百千万億])\s*(?:です|である|だ|है|हैं|입니다|이다|이에요|예요|'?(?:dir|dır|dur|dür|tir|tır|tur|tür))[。.]?$"
)

CONCLUSION = re.compile(
    r"(?:and\s+)?(?:so|thus|therefore|hence|consequently|in\s+total|altogether|in\s+conclusion|in\s+the\s+end|finally"
    r"|overall|as\s+a\s+result|this\s+means(?:\s+that)?|that\s+means|that\s+makes|we\s+(?:get|find|have|obtain|conclude)"
    r"|it\s+follows|which\s+gives|this\s+gives|giving|also|donc|daher|somit|por\s+lo\s+tanto|quindi|i\s+(?:get|got|find|found)|итого|dolayısıyla)\b"
    r"|∴|⇒|→|所以|因此|综上|故|よって|したがって|따라서|그러므로",
    re.IGNORECASE,
)

# The closing sentence of a sum: "..., for a total of 72 clips", "Total number of clips: 72", "The total is 72".
TOTAL = re.compile(
    r"(?:.*\bfor\s+a\s+(?:grand\s+)?total\s+of|(?:the\s+|a\s+|grand\s+)?(?:total|sum)(?:\s+\w+){0,4}?\s*(?:[:=]|\bis\b|\bwas\b))",
    re.IGNORECASE,
)

# Two values in one place: "2 or 3", "2 \\text{ or } 3", "5 ± 1".
SEVERAL = re.compile(
    r"(?:\d|[a-zA-Z)}$])\s*(?:\\text\s*\{\s*(?:or|and/or)\s*\}|\b(?:or|and/or|oder|veya|или)\b|或|または|또는|\\lor\b|\\vee\b|\|\|)\s*[-+$(\\{]*[\da-zA-Z]"
    r"|\d\s*(?:\\pm|±)|\\text\s*\{\s*(?:or|maybe|not)\b",
    re.IGNORECASE,
)

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
    (
        r"(?<=[\d$*}]),?\s+(?:rather\s+than|instead\s+of|and\s+not|not|und\s+nicht|nicht|et\s+non|y\s+no|e\s+non|e\s+não)"
        r"\s+\$?\d[\d.,]*\$?(?=[\s.,;!]|$)",
        "",
    ),
    (r"\bне\s+{x},?\s+а\s+", ""),
    (r"不(是){x}[,，]?\s*而是", r"\1"),
    (r"(?<=は){x}(?:ではなく|じゃなく)[、,]?\s*", ""),
    (r"(?<=[은는]\s){x}(?:이|가)\s*아니라\s*", ""),
    (r"(?:ليس|ليست)\s+{x}\s+بل\s+", "هو "),
    (r"(?<=\s){x}\s+नहीं,?\s+बल्कि\s+", ""),
)
_CONTRAST = [(re.compile(pattern.replace("{x}", _SHORT), re.IGNORECASE), kept) for pattern, kept in _CONTRASTS]
_CONTRASTING = ("but", "not", "rather", "instead", "nicht", "non ", "y no", "não", "mais", "sino", "ma ", "bensì",
                "mas", "değil", "а", "而是", "なく", "아니라", "بل", "बल्कि")  # fmt: skip


def assert_contrast(text: str) -> str:
    """Rewrite "not 41 but 42" as "42", in every language."""
    if any(word in text for word in _CONTRASTING):
        for pattern, kept in _CONTRAST:
            text = pattern.sub(kept, text)
    return text
