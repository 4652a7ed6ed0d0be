"""The words by which people and models announce, take back, hedge or suppose an answer, in the languages we grade."""

import re

_FILLER = (
    r"(?:\s+(?:then|thus|therefore|hence|simply|just|clearly|actually|exactly|indeed|now|also|definitely"
    r"|certainly)\b)*"
)

# "the answer is", "Final answer:", "**Answer**:" and the same in the other languages.
PHRASE = re.compile(
    rf"""
    \b(?:\w+\s+)?(?:answer|ans|result|solution)\b\.?
        (?:\s+(?:to|of|for)\s+(?:the|this|that|your|our)\s+(?:\w+\s+)?(?:problem|question|exercise|puzzle|equation))?
        {_FILLER}
        [*_]{{0,3}}\s*
        (?:(?:is|was|equals|=|will\s+be|would\s+be|should\s+be|must\s+be|has\s+to\s+be|comes\s+(?:out\s+)?to|are)\b{_FILLER}
            \s*(?:equal\s+to\b)?\s*:?|[:：→]|=(?!=)|(?=[*_]*\s*\n))
    |\b(?:endgültige\s+)?(?:antwort|ergebnis|lösung)\b\s*(?:ist|lautet|beträgt|:)(?:\s+also)?\s*:?
    |\b(?:respuesta|resultado|solución)\b(?:\s+final|\s+correcta)?\s*(?:es|:)\s*:?
    |\b(?:réponse|résultat|solution)\b(?:\s+finale?)?\s*(?:est|:)\s*(?:donc\b)?\s*:?
    |\b(?:risposta|risultato|soluzione)\b(?:\s+finale)?\s*(?:è|:)\s*:?
    |\b(?:resposta|resultado|solução)\b(?:\s+final)?\s*(?:é|:)\s*:?
    |\b(?:cevap|yanıt|sonuç)\b\s*(?:[:=]|şudur:?)?(?=\s*[-$\\(*\d])
    |\b(?:ответ|результат)\b\s*[:=—-]?(?=\s*[-$\\(*\d])
    |(?:最终)?(?:答案|結果|结果)(?:应该)?(?:是|为|為|等于|[:：=])\s*
    |(?:最終的な)?(?:答え|解答|答案)(?:は|[:：=])\s*
    |(?:정답|답)(?:은|는|[:：=])\s*
    |उत्तर\s*(?:है|[:=])\s*
    |(?:الجواب|الإجابة|الاجابة|الناتج|النتيجة)(?:\s+(?:النهائي|النهائية))?\s*(?:هو|هي|[:=])\s*
    """,
    re.IGNORECASE | re.VERBOSE,
)

# Steps have results too: these announce the answer only where nothing else does.
WEAK_PHRASE = re.compile(
    r"result|solution|ergebnis|lösung|résultat|resultado|risultato|soluci|soluzione|solução|sonuç|結果|结果|الناتج|النتيجة"
    r"|\b(?:first|second|third|fourth|last|previous|next|intermediate|partial|his|her|their|this|that)\s+answer",
    re.IGNORECASE,
)

# Every PHRASE contains one of these in lower case; finding them is much cheaper than trying the pattern everywhere.
KEYWORDS = (
    "answer", "result", "solution", "antwort", "ergebnis", "lösung", "respuesta", "resultado", "solución", "réponse",
    "résultat", "risposta", "risultato", "soluzione", "resposta", "solução", "cevap", "yanıt", "sonuç", "ответ",
    "результат", "答案", "結果", "结果", "答え", "解答", "정답", "답", "الجواب", "الإجابة", "الاجابة", "الناتج",
    "النتيجة", "ans.", "ans:", "उत्तर",
)  # fmt: skip

ASCII_KEYWORDS = tuple(keyword for keyword in KEYWORDS if keyword.isascii())

# The copula that some languages put after the value: 42です, 42입니다, 42'dir.
COPULA_SUFFIX = re.compile(
    r"(?<=[\d%])\s*(?:です|である|だ|입니다|이다|이에요|예요|'?(?:dir|dır|dur|dür|tir|tır|tur|tür))[。.]?$"
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

# Directly before a value: "not 42", "isn't equal to 42", "an incorrect answer would be 42".
NEGATED_BEFORE = re.compile(
    r"""
    (?:\b(?:not|never|cannot|nicht|kein|keine|nunca|jamais|mai|değil)\b|n['’]t\b|\banything\s+but\b|\bfar\s+from\b|不是|并非|\bpas\b|\bno\s+es\b|\bnon\s+è\b|\bnão\s+é\b|\bне\b|ليس)
        (?:\s+(?:\w+ly|be|even|a|an|the|equal|equals|to|going|really|is|actually|at|all|answer|final|correct|value|just|possible|possibly|have|been))*
        \s*[:,]?\s*(?:[$*("'`\s]|\\\(|\\\[)*$
    |\bnowhere\s+near\s*(?:[$*("'`\s]|\\\(|\\\[)*$
    |\b(?:ignore|wrong|incorrect|false|example|sample|instance|not\s+(?:a|an|the|my)\s+\w+)\b[^.;:]{0,20}:\s*(?:[$*("'`\s]|\\\(|\\\[)*$
    |\b(?:other\s+than|except|excluding|instead\s+of|rather\s+than|unlike|rule\s+out|ruled\s+out|reject|rejecting
        |opposite\s+of|mistaken\s+for)\s*[:,]?\s*(?:the\s+answer\s+)?(?:is\s+)?(?:[$*("'`\s]|\\\(|\\\[)*$
    |\b(?:wrong|incorrect|false|mistaken|erroneous|invalid|bogus|fake|bad|common|tempting|naive)\s+
        (?:\w+\s+)?(?:answer|result|value|solution|number|guess|choice|response)\b[^,;]*$
    |\b(?:answer|solution|result)\s+(?:is\s+not|isn['’]t|cannot\s+be|can['’]t\s+be|could\s+not\s+be|is\s+never)
        \b(?:(?!\b(?:but|rather)\b)[^,;])*$
    |\b(?:doubt|doubts|doubtful|deny|denies|mistake|nobody|no\s+one|untrue|disagree|refuse|unlikely|hardly|impossible|nonsense
        |false\s+that|wrong\s+to|incorrect\s+to|not\s+true|used\s+to\s+be|no\s+longer)\b[^,;:]*$
    """,
    re.IGNORECASE | re.VERBOSE,
)

# A negated verb before a value: "it does not cost 42"; but "those who do not play are 42" states 42.
NEGATED_VERB = re.compile(
    r"(?:\b(?:not|never|cannot)|n['’]t)\s+(?:(?!(?:is|are|was|were|equals|makes|gives|leaves)\b)\w+\s+){0,2}[$*]*$",
    re.IGNORECASE,
)

# Directly after a value: "... is wrong", "... is not the answer", "? No.", "- just kidding".
NEGATED_AFTER = re.compile(
    r"""
    [\s$*()"'`.,!;:\\\[\]\-–—]{0,12}(?:[✗✘❌✖🚫❎]|değil|ではな|じゃな|아니|
        (?:(?:but\s+)?(?:this|that|it|which|the\s+(?:above|answer|result|number|value))\s+)?
            (?:is|was|would\s+be|are|looks|seems|must\s+be|has\s+to\s+be|turns\s+out\s+to\s+be)\s+
            (?:\w+ly\s+|of\s+course\s+|a\s+|an\s+|the\s+|in\s+fact\s+)*
            (?:not|never|wrong|incorrect|false|mistake|mistaken|lie|error|erroneous|invalid|impossible|nonsense|untrue)\b
        |(?:is|was|does|do|are|could|would|should|ca|wo)n['’]t\b
        |(?:cannot|can\s+not)\s+be\b
        |(?:but\s+)?(?:this|that|it)(?:['’]s|\s+is|\s+was)\s*(?:n['’]t|not\b|wrong|incorrect|false|a\s+lie|a\s+joke)
        |(?:but\s+)?(?:this|that|it)\s+(?:isn|wasn|can)['’]t\b
        |\??\s*(?:no\b|nope\b|wrong\b|incorrect\b|false\b|not\b(?!\s+(?:only|surprising))|just\s+kidding)
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)

RETRACTION = re.compile(
    r"\b(?:just\s+kidding|scratch\s+that|i\s+take\s+(?:it|that)\s+back|ignore\s+(?:that|this|the\s+(?:above|previous|box))"
    r"|disregard\s+(?:that|this|the)|(?:that|this|it)\s+(?:is|was)\s+(?:\w+ly\s+)?(?:wrong|incorrect|not\s+(?:right|correct|true|it|the))"
    r"|(?:that|this|it)['’]s\s+(?:\w+ly\s+)?(?:wrong|incorrect|not\s+(?:right|correct|true|it|the))|(?:i\s+was|i\s+am|i['’]m)\s+wrong"
    r"|(?:wait|actually|hmm|oops|sorry),?\s+(?:no\b|it\b|that\b|the\s+answer)|on\s+second\s+thought|i\s+made\s+(?:a|an)\s+(?:mistake|error)"
    r"|or\s+(?:maybe|perhaps|possibly)|wrong|incorrect|incorrectly|false|oops|whoops|correction|sorry|kidding|april\s+fools?|i\s+meant|edit|the\s+(?:real|true|actual)\s+answer|(?:it\s+)?(?:could|might|may)\s+(?:also\s+)?be)\b",
    re.IGNORECASE,
)

HEDGE_BEFORE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|might|may\s+be|could\s+be|could\s+also\s+be|i\s+guess|guess(?:ing)?|not\s+sure"
    r"|unsure|no\s+idea|either|neither|between|somewhere|for\s+(?:example|instance)|such\s+as|something\s+like|according\s+to|vielleicht|quizás|peut-être|forse|belki)\b[^,;]*$",
    re.IGNORECASE,
)

# What follows a value and offers another one: "42 or 43", "42, or maybe 43", "42/43?".
HEDGE_AFTER = re.compile(
    r"\s*\$?\s*[,;/|&]\s*[-$]*\d|[^.;]{0,60}?\b(?:or|oder|ou|veya|ya\s+da|или)\s+(?:else\s+)?(?:maybe\s+|perhaps\s+|possibly\s+|even\s+|it\s+is\s+)?[-$(\\]*\d"
    r"|[^.;]{0,60}?(?:或|または|또는)\s*[-$(\\]*\d",
    re.IGNORECASE,
)

SEVERAL = re.compile(
    r"(?:\d|[a-zA-Z)}$])\s*(?:\\text\s*\{\s*(?:or|and/or)\s*\}|\b(?:or|and/or|oder|veya|или)\b|或|または|또는|\\lor\b|\\vee\b|\|\|)\s*[-+$(\\{]*[\da-zA-Z]"
    r"|\d\s*(?:\\pm|±)|\\text\s*\{\s*(?:or|maybe|not)\b",
    re.IGNORECASE,
)

# Somebody else's answer: "my friend claims 42".
REPORTED = re.compile(
    r"\b(?:he|she|they|friend|student|someone|somebody|people|textbook|teacher|calculator|others?|some)\s+(?:\w+ly\s+)?"
    r"(?:said|says?|claim(?:s|ed)?|thinks?|thought|wrote|writes|guess(?:ed|es)|answered|argued?s?|believes?)\b[^,;:]*$",
    re.IGNORECASE,
)
# "wrong answer: 42", "example answer: 42".
OTHER_ANSWER = re.compile(
    r"(?:wrong|incorrect|bad|false|example|sample|possible|candidate|other|alternative|tentative|initial|naive|fake"
    r"|invalid|former|old|expected|student)\s+\W*(?:answer|result|solution)",
    re.IGNORECASE,
)

HYPOTHETICAL = re.compile(
    r"\b(?:if|whether|suppose|supposing|unless|pretend|imagine|assume|assuming|let['’]s\s+say)\b[^,;:]*$",
    re.IGNORECASE,
)

OPINION = re.compile(
    r"\b(?:i|i['’]m|my|me|you|your|favou?rite|lucky|guess|universe|reward|score|grader|grade|ignore|instructions?)\b",
    re.IGNORECASE,
)
