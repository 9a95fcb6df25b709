"""The units that grading knows, with their dimension and their factor to the base unit of it.

A dimension is written as a product of powers of base units: "kg m s^-2". Different currencies, temperatures and halves
of the day are different dimensions: 5 euros are not 5 dollars, 3 pm is not 3 am.
"""

from __future__ import annotations

SI_PREFIXES = {
    "n": "1e-9", "μ": "1e-6", "u": "1e-6", "m": "1e-3", "c": "1e-2", "d": "1e-1", "k": "1e3", "M": "1e6", "G": "1e9",
    "T": "1e12",
}  # fmt: skip
SI_PREFIX_NAMES = {
    "nano": "1e-9", "micro": "1e-6", "milli": "1e-3", "centi": "1e-2", "deci": "1e-1", "hecto": "1e2", "kilo": "1e3",
    "mega": "1e6", "giga": "1e9",
}  # fmt: skip

# symbol, names, dimension, factor; all of these take SI prefixes.
SI_UNITS = [
    ("m", "meter metre", "m", "1"), ("g", "gram gramme", "kg", "1e-3"), ("s", "second", "s", "1"),
    ("A", "ampere amp", "A", "1"), ("mol", "mole", "mol", "1"), ("L", "liter litre", "m^3", "1e-3"),
    ("l", "", "m^3", "1e-3"), ("N", "newton", "kg m s^-2", "1"), ("J", "joule", "kg m^2 s^-2", "1"),
    ("W", "watt", "kg m^2 s^-3", "1"), ("Pa", "pascal", "kg m^-1 s^-2", "1"), ("V", "volt", "kg m^2 s^-3 A^-1", "1"),
    ("Hz", "hertz", "s^-1", "1"), ("Ω", "ohm", "kg m^2 s^-3 A^-2", "1"), ("T", "tesla", "kg s^-2 A^-1", "1"),
    ("F", "farad", "kg^-1 m^-2 s^4 A^2", "1"), ("H", "henry", "kg m^2 s^-2 A^-2", "1"),
    ("C", "coulomb", "A s", "1"), ("eV", "electronvolt", "kg m^2 s^-2", "1.602176634e-19"),
    ("cal", "calorie", "kg m^2 s^-2", "4.184"),
    ("pc", "parsec", "m", "3.0856775814913673e16"), ("bar", "", "kg m^-1 s^-2", "1e5"),
    ("Wh", "", "kg m^2 s^-2", "3600"),
]  # fmt: skip

# names and symbols, dimension, factor
OTHER_UNITS = [
    ("in inch inche 英寸", "m", "0.0254"), ("ft foot feet 英尺", "m", "0.3048"), ("yd yard", "m", "0.9144"),
    ("mi mile 英里", "m", "1609.344"), ("ly lightyear", "m", "9.4607304725808e15"), ("AU au", "m", "149597870700"),
    ("nmi", "m", "1852"), ("米", "m", "1"), ("厘米", "m", "1e-2"), ("毫米", "m", "1e-3"), ("分米", "m", "1e-1"),
    ("千米 公里", "m", "1000"), ("متر", "m", "1"), ("سم", "m", "1e-2"), ("كم", "m", "1000"),
    ("min mins minute 分钟 分鐘 دقيقة", "s", "60"), ("h hr hrs hour 小时 小時 ساعة", "s", "3600"),
    ("秒 ثانية sec secs", "s", "1"),
    ("d day 天 日 يوم", "s", "86400"), ("wk week 周 星期", "s", "604800"), ("month 个月 月", "month", "1"),
    ("yr year 年 岁", "month", "12"), ("decade", "month", "120"), ("century centurie", "month", "1200"),
    ("lb lbs pound", "kg", "0.45359237"), ("oz ounce", "kg", "0.028349523125"), ("ton tonne 吨", "kg", "1000"),
    ("克", "kg", "1e-3"), ("千克 公斤", "kg", "1"), ("كغ", "kg", "1"), ("M_{\\odot}", "kg", "1.98847e30"),
    ("mph", "m s^-1", "0.44704"), ("kph kmph kmh", "m s^-1", "5/18"), ("knot kn", "m s^-1", "463/900"),
    ("fps", "m s^-1", "0.3048"),
    ("acre", "m^2", "4046.8564224"), ("ha hectare 公顷", "m^2", "10000"), ("cc", "m^3", "1e-6"), ("升", "m^3", "1e-3"),
    ("毫升", "m^3", "1e-6"), ("gal gallon", "m^3", "0.003785411784"), ("qt quart", "m^3", "0.000946352946"),
    ("pt pint", "m^3", "0.000473176473"), ("cup", "m^3", "0.0002365882365"),
    ("tbsp tablespoon", "m^3", "0.00001478676478125"), ("tsp teaspoon", "m^3", "0.00000492892159375"),
    ("atm", "kg m^-1 s^-2", "101325"), ("erg", "kg m^2 s^-2", "1e-7"), ("dyn dyne", "kg m s^-2", "1e-5"),
    ("rpm", "s^-1", "1/60"), ("bit", "bit", "1"), ("byte B", "bit", "8"), ("KB kB", "bit", "8000"),
    ("MB", "bit", "8e6"), ("GB", "bit", "8e9"),
    ("K kelvin", "K", "1"), ("^\\circC celsius", "celsius", "1"), ("^\\circF fahrenheit", "fahrenheit", "1"),
    ("\\$ $ US\\$ USD usd dollar buck 美元 دولار", "dollar", "1"), ("cent ¢ penny pennie", "dollar", "0.01"),
    ("€ EUR euro 欧元", "euro", "1"), ("£ GBP", "sterling", "1"),
    ("¥ yen JPY yuan RMB CNY 元 日元 人民币", "yuan", "1"),
    ("₹ rupee Rs INR", "rupee", "1"), ("₩ won KRW", "won", "1"), ("₽ ruble rouble RUB", "ruble", "1"),
    ("HK\\$ HKD", "hkd", "1"), ("A\\$ AU\\$ AUD", "aud", "1"), ("C\\$ CA\\$ CAD", "cad", "1"),
    ("NZ\\$ NZD", "nzd", "1"), ("S\\$ SGD", "sgd", "1"), ("NT\\$ TWD", "twd", "1"), ("R\\$ BRL reai", "brl", "1"),
    ("MX\\$ MXN", "mxn", "1"), ("CHF franc franken", "franc", "1"), ("SEK krona kronor", "sek", "1"),
    ("NOK", "nok", "1"), ("DKK", "dkk", "1"), ("ISK", "isk", "1"), ("kr krone kroner", "krone", "1"),
    ("PLN zł zloty zlotie złoty", "zloty", "1"), ("CZK Kč koruna", "koruna", "1"), ("HUF Ft forint", "forint", "1"),
    ("TRY ₺ lira", "lira", "1"), ("ILS ₪ NIS shekel", "shekel", "1"), ("THB ฿ baht", "baht", "1"),
    ("VND ₫ dong đồng", "dong", "1"), ("PHP ₱", "php", "1"), ("NGN ₦ naira", "naira", "1"),
    ("UAH ₴ hryvnia", "hryvnia", "1"), ("ZAR rand", "rand", "1"), ("IDR Rp rupiah", "rupiah", "1"),
    ("MYR RM ringgit", "ringgit", "1"), ("SAR riyal", "riyal", "1"), ("AED dirham", "dirham", "1"),
    ("peso", "peso", "1"), ("角", "yuan", "0.1"), ("分", "yuan", "0.01"),
    ("am a.m. a.m AM A.M. A.M 上午", "morning", "1"), ("pm p.m. p.m PM P.M. P.M 下午", "afternoon", "1"),
]  # fmt: skip
CURRENCY_SIGNS = (
    r"(?:US|HK|AU|CA|NZ|NT|MX|[ACRS])\s?\\?\$", r"\\\$", "[€£¥₹₩₽₺₪฿₫₱₦₴]",
    r"Rs\.?(?=[\s\d])", r"R[Mp](?=[\s\d])", "RMB",
    "USD", "EUR", "GBP", "JPY", "CNY", "INR", "KRW", "RUB", "HKD", "AUD", "CAD", "NZD", "SGD", "TWD", "BRL", "MXN",
    "CHF", "SEK", "NOK", "DKK", "ISK", "PLN", "CZK", "HUF", "TRY", "ILS", "NIS", "THB", "VND", "PHP", "NGN", "UAH",
    "ZAR", "IDR", "MYR", "SAR", "AED",
)  # fmt: skip
"""What may stand before a number, as patterns."""

PERCENT = ("%", "\\%", "percent", "percentage", "pct")
DEGREES = ("^\\circ", "degree", "deg", "度", "درجة")
RADIANS = ("radian", "rad")

ANY_COUNT = {
    "arrangement", "case", "choice", "combination", "different", "digit", "distinct", "element", "function",
    "integer", "item", "number", "option", "outcome", "pair", "path", "permutation", "piece", "possibilitie",
    "possibility", "root", "set", "solution", "subset", "term", "time", "total", "triple", "triplet", "tuple",
    "unit", "value", "way", "zero", "个", "件", "位", "元素", "只", "名", "块", "张",
    "支", "本", "条", "條", "次", "种",
    "种可能",
    "种方案", "种方法",
}  # fmt: skip
"""Words that only say that something is counted: 240 ways are 240 arrangements."""
IRREGULAR_PLURALS = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "teeth": "tooth", "sheep": "sheep", "fish": "fish", "dice": "die", "人": "person", "vertices": "vertex",
    "loaves": "loaf", "leaves": "leaf", "knives": "knife", "cattle": "cattle", "deer": "deer", "players": "player",
}  # fmt: skip
NEVER_NOUNS = {
    "about", "above", "additional", "after", "all", "always", "and", "another", "any", "approximately", "are",
    "around", "as", "at", "be", "because", "before", "below", "between", "both", "by", "can", "cannot", "cube",
    "cubed", "cubes", "degrees", "does", "double", "down", "during", "each", "either", "else", "every", "extra",
    "factors", "few", "fewer", "first", "for", "from", "half", "halves", "has", "he", "if", "impossible", "in",
    "infinite", "into", "is", "it", "its", "last", "least", "less", "logs", "many", "minus", "mod", "modulo",
    "more", "most", "much", "multiples", "negatives", "neither", "never", "no", "none", "nor", "not", "of", "on",
    "only", "onto", "or", "other", "others", "over", "percent", "plus", "plusminus", "power", "powers", "roughly",
    "she", "sometimes", "square", "squared", "squares", "than", "that", "these", "they", "this", "those", "thrice",
    "thus", "times", "to", "twice", "undefined", "under", "unknown", "unless", "up", "versus", "vs", "was", "were",
    "when", "where", "will", "with", "would", "yes",
}  # fmt: skip
"""Words that change what an answer says; a phrase that has one of them is no unit."""
