"""Language consistency: high for thoughts in the prompt's language, low for others, maths and code left out."""

import pytest

from r1llama.rewards import get_reward
from r1llama.rewards.language import LanguageConsistencyReward, by_words

TEXTS = {
    "en": "First we count the apples that Tom has. Then we add the three that he buys, so there are seven of them.",
    "de": "Zuerst zählen wir die Äpfel, die Tom hat. Dann sind es mit den drei neuen sieben und nicht acht.",
    "fr": "Nous comptons les pommes que Tom a dans son panier. Donc il y a sept pommes, et pas une de plus.",
    "es": "Primero contamos las manzanas que tiene Tomás. Entonces son siete manzanas en total, y no hay más.",
    "it": "Prima contiamo le mele che Tom ha nel cesto. Quindi sono sette mele in tutto, e non una di più.",
    "tr": "Önce elmaları sayarız ve üç tane ekleriz. Sonra bu kadar elma olur, yani toplam yedi elma var.",
    "pt": "Primeiro contamos as maçãs que ele tem. Então são sete maçãs ao todo, e não há mais uma.",
    "zh": "首先我们数一数汤姆有多少个苹果，然后加上他买的三个，所以一共是七个。",
    "ja": "まずトムが持っているりんごを数えます。それから三つを足すので、全部で七つです。",
    "ko": "먼저 톰이 가진 사과를 셉니다. 그리고 세 개를 더하면 모두 일곱 개입니다.",
    "ru": "Сначала посчитаем яблоки, которые есть у Тома. Потом добавим три, значит всего семь.",
    "ar": "أولا نعد التفاحات التي لدى توم ثم نضيف ثلاث تفاحات فيصبح المجموع سبع تفاحات.",
    "he": "קודם סופרים את התפוחים של תום ואז מוסיפים שלושה ולכן יש שבעה.",
    "hi": "पहले हम टॉम के सेब गिनते हैं और फिर तीन जोड़ते हैं, इसलिए कुल सात हैं।",
}
consistency = get_reward("language_consistency")


@pytest.mark.parametrize("language", TEXTS)
def test_detection(language):
    assert by_words(TEXTS[language]) == language


@pytest.mark.parametrize("asked", TEXTS)
@pytest.mark.parametrize("thought", TEXTS)
def test_every_pair_of_languages(asked, thought):
    (value,) = consistency([f"<think>{TEXTS[thought]}</think>\n42"], prompts=[TEXTS[asked]])
    if asked == thought:
        assert value > 0.9
    else:
        assert value < 0.2


def test_a_mixture_is_in_between():
    mixed = f"<think>{TEXTS['en']} {TEXTS['zh']}</think>"
    assert 0.2 < consistency([mixed], prompts=[TEXTS["en"]])[0] < 0.9


def test_maths_and_code_have_no_language():
    thought = (
        "<think>Zuerst rechnen wir und das ist nicht schwer: $\\text{the total of all} = 5$ und `for i in the_list` "
        "```python\nfor the_apple in all_of_the_apples: print('this is the one that we have')\n``` also sind es fünf."
        "</think>"
    )
    assert consistency([thought], prompts=[TEXTS["de"]]) == [1.0]


def test_unknown_cannot_be_judged():
    assert consistency(["<think>1 + 1 = 2</think>2"], prompts=[TEXTS["en"]]) == [None]
    assert consistency([f"<think>{TEXTS['en']}</think>"], prompts=["12 + 30 = ?"]) == [None]
    assert consistency([f"<think>{TEXTS['en']}</think>"], prompts=["?"], language=["en"]) == [1.0]


def test_detectors():
    with pytest.raises(ValueError, match="unknown detector"):
        LanguageConsistencyReward("nothing")
    own = LanguageConsistencyReward(lambda text: "en", language="en")
    assert own(["<think>qwertz uiop asdf ghjk</think>"], prompts=["x"]) == [1.0]


def test_py3langid_decides_what_words_leave_open():
    pytest.importorskip("py3langid")
    reward = LanguageConsistencyReward("py3langid")
    finnish = "<think>Ensin laskemme omenat ja sitten lisäämme kolme omenaa koriin, joten niitä on seitsemän.</think>"
    assert reward([finnish], prompts=[TEXTS["en"]])[0] < 0.2
    assert reward([finnish], prompts=["Kuinka monta omenaa Tomilla on, jos hän ostaa kolme omenaa lisää?"])[0] > 0.8
