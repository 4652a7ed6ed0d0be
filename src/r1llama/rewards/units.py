"""Words that may follow a number: measures, currencies, multipliers, and words that show it is no plain number."""

_MEASURES = {
    "mm": "millimeter millimeters millimetre millimetres",
    "cm": "cms centimeter centimeters centimetre centimetres",
    "m": "meter meters metre metres",
    "km": "kms kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards yds",
    "mi": "mile miles",
    "mg": "milligram milligrams",
    "g": "gram grams gramme grammes",
    "kg": "kgs kilo kilos kilogram kilograms",
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "t": "ton tons tonne tonnes",
    "ml": "mL milliliter milliliters millilitre millilitres",
    "L": "l liter liters litre litres",
    "gal": "gallon gallons",
    "s": "sec secs second seconds",
    "min": "mins minute minutes",
    "h": "hr hrs hour hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs",
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
    "cm²": "cm^2 cm^{2} cm2 sq cm square cm square centimeters square centimetres",
    "m²": "m^2 m^{2} m2 sq m square m square meters square metres",
    "ft²": "ft^2 ft^{2} sq ft square feet",
    "cm³": "cm^3 cm^{3} cubic cm cubic centimeters",
    "m³": "m^3 m^{3} cubic m cubic meters cubic metres",
    "$": "dollar dollars usd bucks",
    "€": "euro euros eur",
    "£": "gbp sterling",
    "¥": "yen yuan rmb",
    "₹": "rupee rupees rs inr",
    "¢": "cent cents",
}
_PHRASES = ("miles per hour", "kilometers per hour", "kilometres per hour", "meters per second", "metres per second",
            "degrees celsius", "degrees fahrenheit", "square centimeters", "square centimetres", "square meters",
            "square metres", "square feet", "cubic centimeters", "cubic meters", "cubic metres", "square cm", "square m",
            "cubic cm", "cubic m", "sq cm", "sq m", "sq ft")  # fmt: skip


def _aliases(names: str) -> list[str]:
    found = [phrase for phrase in _PHRASES if f" {phrase} " in f" {names} "]
    for phrase in found:
        names = names.replace(phrase, "")
    return found + names.split()


_UNITS = {alias: unit for unit, names in _MEASURES.items() for alias in (unit, *_aliases(names))}

CURRENCIES = {"$": "$", "us$": "$", "usd": "$", "€": "€", "eur": "€", "£": "£", "gbp": "£", "¥": "¥", "₹": "₹",
              "rs": "₹"}  # fmt: skip
MULTIPLIERS = {"hundred": 100, "thousand": 10**3, "k": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
               "dozen": 12}  # fmt: skip

# After a number these words make it part of an expression, a comparison or a doubt.
NOT_UNITS = frozenset(
    """or and not no nor never is are was isn't aren't be if but maybe perhaps possibly probably unless except plus
    minus times divided multiplied squared cubed factorial negative wrong incorrect false mistaken half halves third
    thirds quarter quarters fourths fifths sixths sevenths eighths ninths tenth tenths hundredth hundredths thousandths
    less than more fewer least most above below under over to of out mod modulo choose into either neither versus vs
    hundred thousand million billion trillion dozen percent pi sqrt root log hundreds thousands millions billions
    instead rather approx point double triple twice""".split()
)


def canonical_unit(text: str) -> str:
    """Return the canonical measure or currency that `text` names, or "" when it names none."""
    text = text.strip().rstrip(".")
    return _UNITS.get(text) or _UNITS.get(" ".join(text.lower().split()), "")
