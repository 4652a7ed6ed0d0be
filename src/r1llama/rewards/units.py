"""Words around a number: measures, currencies, multipliers, and words that show it is no plain number."""

import re

_MEASURES = {
    "mm": "millimeter millimeters millimetre millimetres millimètre millimètres milímetro milímetros мм 毫米",
    "cm": (
        "cms centimeter centimeters centimetre centimetres zentimeter centimètre centimètres centímetro "
        "centímetros centimetri см 厘米 公分 センチ"
    ),
    "m": (
        "meter meters metre metres metern mètre mètres metro metros metri м метр метра метров 米 メートル "
        "미터 متر مترا"
    ),
    "km": (
        "kms kilometer kilometers kilometre kilometres kilometern kilomètre kilomètres kilómetro kilómetros "
        "chilometri quilômetro quilômetros км километр километра километров 千米 公里 キロ キロメートル "
        "킬로미터 كم"
    ),
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards yds",
    "mi": "mile miles",
    "mg": "milligram milligrams",
    "g": "gram grams gramme grammes gramm gramo gramos grammi grama gramas г грамм грамма 克 グラム 그램",
    "kg": (
        "kgs kilo kilos kilogram kilograms kilogramm kilogrammes chilo chili quilo quilos кг килограмм "
        "килограмма 千克 公斤 キログラム 킬로그램 كغ"
    ),
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "t": "ton tons tonne tonnes tonnen tonelada toneladas т",
    "ml": "mL milliliter milliliters millilitre millilitres миллилитров мл 毫升",
    "L": "l liter liters litre litres litro litros litri л литр литра литров 升 リットル 리터 لتر",
    "gal": "gallon gallons",
    "s": (
        "sec secs second seconds sekunde sekunden secondes segundo segundos secondi saniye с сек секунд "
        "секунды 秒 초 ثانية"
    ),
    "min": "mins minute minutes minuten minuto minutos minuti dakika мин минут минуты 分钟 分鐘 分 분 دقيقة",
    "h": (
        "hr hrs hour hours stunde stunden heure heures hora horas ore saat ч час часа часов 小时 小時 時間 "
        "시간 ساعة ساعات"
    ),
    "day": "days tag tage tagen jour jours día días dia dias giorni gün день дня дней 天 日 일 يوم أيام",
    "week": "weeks woche wochen semaine semaines semana semanas settimane hafta неделя недели недель 周 週間 주",
    "month": "months monat monate mois meses mesi месяц месяца месяцев 个月 ヶ月 개월",
    "year": "years yr yrs jahr jahre jahren ans années años anni anos yıl лет год года 年 년 سنة سنوات",
    "mph": "miles per hour miles/hour mi/h",
    "km/h": "kmh kph kilometers per hour kilometres per hour",
    "m/s": "meters per second metres per second",
    "°": "degree degrees deg",
    "°C": "celsius degrees celsius",
    "°F": "fahrenheit degrees fahrenheit",
    "rad": "radian radians",
    "W": "watt watts",
    "kW": "kilowatt kilowatts",
    "J": "joule joules",
    "N": "newton newtons",
    "Hz": "hertz",
    "m/s²": "m/s^2 m/s^{2} m/s2",
    "cm²": "cm^2 cm^{2} cm2 sq cm square cm square centimeters square centimetres",
    "m²": "m^2 m^{2} m2 sq m square m square meters square metres",
    "ft²": "ft^2 ft^{2} sq ft square feet",
    "cm³": "cm^3 cm^{3} cubic cm cubic centimeters",
    "m³": "m^3 m^{3} cubic m cubic meters cubic metres",
    "$": "dollar dollars usd bucks dólares dollari dólar доллар доллара долларов 美元 ドル 달러 دولار",
    "€": "euro euros eur evro",
    "£": "gbp sterling",
    "¥": "yen yuan rmb 元 円 人民币",
    "₹": "rupee rupees rs inr",
    "₽": "руб рубль рубля рублей",
    "₺": "tl lira",
    "₩": "원",
    "¢": "cent cents centimes céntimos centavos centesimi",
}
_PHRASES = ("miles per hour", "kilometers per hour", "kilometres per hour", "meters per second", "metres per second",
            "degrees celsius", "degrees fahrenheit", "square centimeters", "square centimetres", "square meters",
            "square metres", "square feet", "cubic centimeters", "cubic meters", "cubic metres", "square cm",
            "square m", "cubic cm", "cubic m", "sq cm", "sq m", "sq ft")  # fmt: skip


def _aliases(names: str) -> list[str]:
    found = [phrase for phrase in _PHRASES if f" {phrase} " in f" {names} "]
    for phrase in found:
        names = names.replace(phrase, "")
    return found + names.split()


_UNITS = {alias: unit for unit, names in _MEASURES.items() for alias in (unit, *_aliases(names))}

CURRENCIES = {"$": "$", "us$": "$", "usd": "$", "r$": "R$", "₺": "₺", "₽": "₽", "₩": "₩",
              "€": "€", "eur": "€", "£": "£", "gbp": "£", "¥": "¥", "₹": "₹",
              "rs": "₹"}  # fmt: skip
MULTIPLIERS = {"hundred": 100, "thousand": 10**3, "k": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
               "dozen": 12}  # fmt: skip

# After a number these words make it part of an expression, a comparison or a doubt.
NOT_UNITS = frozenset(
    """or and not no nor never is are was isn't aren't be if but maybe perhaps possibly probably unless except plus
    minus times divided multiplied squared cubed factorial negative wrong incorrect false mistaken half halves third
    thirds quarter quarters fourths fifths sixths sevenths eighths ninths tenth tenths hundredth hundredths thousandths
    less than fewer least most above below under over to of out mod modulo choose into either neither versus vs
    hundred thousand million billion trillion dozen percent pi sqrt root log hundreds thousands millions billions
    instead rather off away approx point double triple twice base though although otherwise said because so which that
    bps mil mln bn mn crore lakh debt doubled tripled halved wrong below above zero
    değil ise oder ou o e und et veya ya""".split()  # noqa: SIM905
)

# Directly before a number, in lower case: "at least 42" states no number, nor does "twice 42" or "it is not 42".
MODIFIERS_BEFORE = re.compile(
    r"(?:\b(?:than|least|most|over|under|above|below|beyond|exceeds?|twice|thrice|double|triple|half|third|quarter"
    r"|almost"
    r"|nearly|up to|until|between|from|not|never|cannot|except|but|without|minus|plus|times|by|other|no|of the|step"
    r"|page"
    r"|chapter|figure|fig|part|question|problem|case|line|number|no\.|in the year|sqrt|root of|square of|cube of"
    r"|half of"
    r"|third of|quarter of|percent of|% of|factorial of|inverse of|negative of|opposite of|to the power|power of|base"
    r"|return|lambda|print|import|assert|def|mod|modulo|log|sin|cos|tan|exp|ln|abs|nicht|kein|keine|pas|nunca|não"
    r"|non è"
    r"|n'est pas|no es|nicht gleich|не|нет|ليس|ليست|ne|mindestens|höchstens|al menos|au moins|en az|en fazla)"
    r"|[不非第约超未无十百千万亿〇一二三四五六七八九]|并非|不等于|小于|大于|至少|至多|超过|以上|以下)\s*:?$"
)

# Directly after a number: "42 squared", "42 is wrong", "42 less than that".
MODIFIERS_AFTER = re.compile(
    r"[\s,.:]*(?:(?:squared|cubed|factorial|doubled|tripled|halved|below|above|off|away|in debt|short of"
    r"|wrong|incorrect"
    r"|false|i guess"
    r"|maybe|perhaps|probably|possibly|or|bps|mil|mln|bn|halves|thirds|quarters|fourths|fifths|sixths|sevenths"
    r"|eighths|ninths|tenths"
    r"|hundredths|thousandths|less|fewer|times|plus|minus|divided|mod|modulo|choose|to|of(?!\s+(?:them|these|those"
    r"|us)\b)|out|or|and|not|no|nor|over"
    r"|hundreds|thousands|millions|billions|pi|point|base|th|st|nd|rd|th\b|if|unless|but|though|although|except"
    r"|otherwise"
    r"|değil|oder|ou|veya|и|или|у|o|to the)\b"
    r"|(?:is|was|are|were|would be|seems|looks|later|ago)\b(?!\s+(?:the|our|my|your)\b)|\w+\s+(?:later|ago)\b|(?:is"
    r"|was|are)n't\b|(?:[万萬亿億百十兆折〇一二三四五六七八九]|千(?![米克])|分(?![钟鐘]))|ではな|じゃな|ではありません|아니)"
)


def canonical_unit(text: str) -> str:
    """Return the canonical measure or currency that `text` names, or "" when it names none."""
    text = text.strip().rstrip(".")
    text = " ".join(text.replace(" ^", "^").split())
    return _UNITS.get(text) or (_UNITS.get(text.lower(), "") if len(text) > 2 else "")
