"""What stands around an answer means the same in every language we grade, whichever way the answer is marked."""

import pytest

from r1llama.rewards import accuracy_reward

# Per language: announcements; what may stand before; what may follow; what takes the answer back; what is no answer.
LANGUAGES = {
    "en": (
        ["The answer is {}.", "So the final answer is {}.", "**Answer:** {}\n", "Thus, the correct result is {}."],
        ["Since 7 is not even, we multiply. ", "If each box holds 6, then 7 boxes hold more. ", "It may look hard. "],
        [" I hope this helps!", " Would you like more details?", " Note that no other value works."],
        [" Wait, that is wrong.", " No, this is not right.", "\n\nSorry, I made a mistake.", " Ignore that.",
         " Correction: 43.", " However, I am not sure.", " That can't be right.", " I don't know."],
        ["The answer is not {}.", "The answer is {} or 43.", "Maybe the answer is {}.", "Suppose the answer is {}.",
         "If it were even, the answer would be {}.", "My friend says the answer is {}.", "The answer is at least {}.",
         "{} is wrong.", "Is the answer {}?", "The answer can never be {}.", "The answer is {}, but I doubt it."],
    ),
    "de": (
        ["Die Antwort ist {}.", "Also lautet das Ergebnis {}.", "**Antwort:** {}\n", "Die richtige Lösung ist {}."],
        ["Da 7 nicht gerade ist, multiplizieren wir. ", "Wenn jede Kiste 6 hat, rechnen wir weiter. "],
        [" Ich hoffe, das hilft!", " Weitere Lösungen gibt es nicht."],
        [" Nein, das ist falsch.", " Das stimmt nicht.", " Moment, ich habe mich verrechnet.", " Korrektur: 43."],
        ["Die Antwort ist nicht {}.", "Die Antwort ist {} oder 43.", "Vielleicht ist die Antwort {}.",
         "Angenommen, die Antwort ist {}.", "Wäre n gerade, wäre die Antwort {}.", "{} ist falsch.",
         "Tom behauptet, die Antwort sei {}.", "Die Antwort ist höchstens {}.", "Ist die Antwort {}?"],
    ),
    "fr": (
        ["La réponse est {}.", "Donc le résultat est {}.", "**Réponse :** {}\n", "La bonne réponse est {}."],
        ["Comme 7 n'est pas pair, on multiplie. ", "Si chaque boîte en contient 6, on continue. "],
        [" J'espère que cela aide !", " Il n'y a pas d'autre solution."],
        [" Non, c'est faux.", " Ce n'est pas correct.", " Attendez, je me suis trompé.", " Erratum : 43."],
        ["La réponse n'est pas {}.", "La réponse est {} ou 43.", "Peut-être que la réponse est {}.",
         "Supposons que la réponse soit {}.", "Si n était pair, la réponse serait {}.", "{} est faux.",
         "Selon Paul, la réponse est {}.", "La réponse est au moins {}.", "La réponse est-elle {} ?"],
    ),
    "es": (
        ["La respuesta es {}.", "Por lo tanto, el resultado es {}.", "**Respuesta:** {}\n",
         "La respuesta correcta es {}."],
        ["Como 7 no es par, multiplicamos. ", "Si cada caja tiene 6, seguimos. "],
        [" ¡Espero que ayude!", " No hay otra solución."],
        [" No, eso es incorrecto.", " Eso no es correcto.", " Perdón, me equivoqué.", " Corrección: 43."],
        ["La respuesta no es {}.", "La respuesta es {} o 43.", "Quizás la respuesta es {}.",
         "Supongamos que la respuesta es {}.", "Si n fuera par, la respuesta sería {}.", "{} es incorrecto.",
         "Juan dice que la respuesta es {}.", "La respuesta es al menos {}.", "¿Es {} la respuesta?"],
    ),
    "it": (
        ["La risposta è {}.", "Quindi il risultato è {}.", "**Risposta:** {}\n", "La risposta corretta è {}."],
        ["Poiché 7 non è pari, moltiplichiamo. "],
        [" Spero sia utile!", " Non ci sono altre soluzioni."],
        [" No, è sbagliato.", " Questo non è corretto.", " Scusa, ho sbagliato.", " Correzione: 43."],
        ["La risposta non è {}.", "La risposta è {} oppure 43.", "Forse la risposta è {}.",
         "Supponiamo che la risposta sia {}.", "Se n fosse pari, la risposta sarebbe {}.", "{} è sbagliato.",
         "Marco dice che la risposta è {}.", "La risposta è almeno {}.", "{} non è la risposta."],
    ),
    "pt": (
        ["A resposta é {}.", "Portanto, o resultado é {}.", "**Resposta:** {}\n", "A resposta correta é {}."],
        ["Como 7 não é par, multiplicamos. "],
        [" Espero que ajude!", " Não há outra solução."],
        [" Não, isso está errado.", " Isso não é correto.", " Desculpe, errei.", " Correção: 43."],
        ["A resposta não é {}.", "A resposta é {} ou 43.", "Talvez a resposta seja {}.",
         "Suponha que a resposta é {}.", "Se n fosse par, a resposta seria {}.", "{} está errado.",
         "João disse que a resposta é {}.", "A resposta é pelo menos {}."],
    ),
    "tr": (
        ["Cevap {}.", "Doğru cevap {}.", "**Cevap:** {}\n", "Sonuç: {}"],
        ["7 çift değildir, çünkü tek sayıdır. ", "Her kutuda 6 elma vardır. "],
        [" Umarım yardımcı olur!"],
        [" Hayır, bu yanlış.", " Bu doğru değil.", " Pardon, hata yaptım.", " Düzeltme: 43."],
        ["Cevap {} değil.", "Cevap {} değildir.", "Cevap {} veya 43.", "Belki cevap {}.", "Varsayalım cevap {}.",
         "Eğer n çift olsaydı cevap {} olurdu.", "Ali'ye göre cevap {}.", "Cevap en az {}.", "Cevap {} mı?"],
    ),
    "ru": (
        ["Ответ: {}.", "Итак, ответ {}.", "**Ответ:** {}\n", "Правильный ответ: {}."],
        ["Число 7 не является чётным, поэтому умножаем. "],
        [" Надеюсь, это поможет!", " Других решений нет."],
        [" Нет, это неверно.", " Это неправильно.", " Ой, я ошибся.", " Исправление: 43."],
        ["Ответ не {}.", "Ответ: {} или 43.", "Возможно, ответ {}.", "Предположим, что ответ {}.",
         "Если бы n было чётным, ответ был бы {}.", "{} — неверный ответ.", "Иван говорит, что ответ {}.",
         "Ответ не менее {}.", "Может быть, ответ {}?"],
    ),
    "ar": (
        ["الجواب هو {}.", "إذن الجواب هو {}.", "**الجواب:** {}\n", "الإجابة الصحيحة هي {}."],
        ["العدد 7 ليس زوجيا. "],
        [" أتمنى أن يساعدك هذا."],
        [" لا، هذا خطأ.", " هذا غير صحيح.", " عفوا، أخطأت."],
        ["الجواب ليس {}.", "الإجابة ليست {}.", "الجواب هو {} أو 43.", "ربما الجواب هو {}.", "{} ليس هو الجواب.",
         "يقول أحمد إن الجواب هو {}.", "الجواب هو {} على الأقل.", "هل الجواب {}؟"],
    ),
    "hi": (
        ["उत्तर {} है।", "इसलिए उत्तर {} है।", "**उत्तर:** {}\n"],
        ["7 सम नहीं है। "],
        [],
        [" नहीं, यह गलत है।", " यह सही नहीं है।"],
        ["उत्तर {} नहीं है।", "उत्तर {} या 43 है।", "शायद उत्तर {} है।", "{} गलत है।"],
    ),
    "zh": (
        ["答案是{}。", "所以最终答案是{}。", "**答案：**{}\n", "因此，正确答案为{}。"],
        ["因为7不是偶数，所以相乘。", "如果每盒有6个，继续计算。"],
        ["希望对你有帮助！", "没有其他解。"],
        ["不对，算错了。", "这是错误的。", "等等，我算错了。", "更正：43。"],
        ["答案不是{}。", "答案是{}或43。", "答案可能是{}。", "假设答案是{}。", "{}是错误的。", "小明说答案是{}。",
         "答案至少是{}。", "答案是{}吗？", "{}并非答案。"],
    ),
    "ja": (
        ["答えは{}です。", "したがって、答えは{}です。", "**答え：**{}\n", "正解は{}です。"],
        ["7は偶数ではありません。", "各箱に6個あります。"],
        ["参考になれば幸いです。"],
        ["いや、間違えました。", "これは間違いです。", "これは正しくありません。", "訂正：43。"],
        ["答えは{}ではありません。", "答えは{}ではない。", "答えは{}か43です。", "たぶん答えは{}です。",
         "{}は間違いです。",
         "先生によると、答えは{}です。", "答えは{}以上です。", "答えは{}ですか？", "もし答えが{}なら、矛盾します。"],
    ),
    "ko": (
        ["답은 {}입니다.", "따라서 답은 {}입니다.", "**정답:** {}\n"],
        ["7은 짝수가 아닙니다. "],
        ["도움이 되길 바랍니다."],
        [" 아니, 틀렸습니다.", " 이것은 오답입니다."],
        ["답은 {}가 아닙니다.", "답은 {} 또는 43입니다.", "아마 답은 {}입니다.", "{}는 틀렸습니다.",
         "답은 {} 이상입니다.",
         "답은 {}입니까?"],
    ),
}  # fmt: skip
MARKED = ["\\boxed{{{}}}\n", "<answer>{}</answer>\n", "#### {}\n"]
SCRIPTS = sorted(LANGUAGES)


def wrong(texts, expected):
    values = accuracy_reward(texts, ["42"] * len(texts))
    return [text for text, value in zip(texts, values, strict=True) if value != expected]


@pytest.mark.parametrize("language", SCRIPTS)
def test_announced_answers_count(language):
    announced, before, after, _, _ = LANGUAGES[language]
    texts = [b + a.format(42) + f for b in ("", *before) for a in announced for f in ("", *after)]
    assert wrong(texts, 1.0) == []


@pytest.mark.parametrize("language", SCRIPTS)
def test_prose_around_a_marked_answer_changes_nothing(language):
    _, before, after, _, _ = LANGUAGES[language]
    texts = [b + m.format(42) + f for b in ("", *before) for m in MARKED for f in ("", *after)]
    assert wrong(texts, 1.0) == []


@pytest.mark.parametrize("language", SCRIPTS)
def test_what_is_taken_back_does_not_count(language):
    announced, _, after, takes_back, _ = LANGUAGES[language]
    marks = [*announced, *MARKED, *(m.strip() for m in MARKED[:2])]
    texts = [a.format(42) + f + t for a in marks for f in ("", *after) for t in takes_back]
    assert wrong(texts, 0.0) == []


@pytest.mark.parametrize("language", SCRIPTS)
def test_what_is_not_said_does_not_count(language):
    _, before, after, _, not_said = LANGUAGES[language]
    texts = [b + n.format(v) + f for b in ("", *before) for n in not_said for v in (42, "$42$", "**42**")
             for f in ("", *after)]  # fmt: skip
    assert wrong(texts, 0.0) == []
