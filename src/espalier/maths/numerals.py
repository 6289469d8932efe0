"""The number that a text gives as its answer, read in one way by exams and rewards."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_CURRENCY = "$€£¥₩₹元"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>(?<!\d)[-+])?(?:[{_CURRENCY}]\s?)?(?P<inner>(?<!\d)-)?"
    rf"(?P<digits>{_DIGITS}/\d+|(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\d))?)"
)
_DASHES = str.maketrans({"−": "-", "–": "-", "﹣": "-"})


def final_number(text: str) -> str | None:
    """The number that a worked solution ends in, as plain digits; None where there is no number.

    It is the first number after the last "####" (GSM8K), or else the last one of the text. A dash right behind a digit
    is a minus between two numbers and no sign. Commas of thousands, signs of money and full-width forms don't count.

    >>> final_number("48/2 = <<48/2=24>>24, so 1,224\\n#### 1,224"), final_number("The answer is $-3.50.")
    ('1224', '-3.50')
    >>> (
    ...     final_number("a loss of -$5"),
    ...     final_number("共１，２２４元"),
    ...     final_number("about 1.5e3"),
    ...     final_number("3/4"),
    ... )
    ('-5', '1224', '1.5e3', '3/4')
    """
    plain = unicodedata.normalize("NFKC", text).translate(_DASHES)
    marked = plain.rsplit("####", 1)
    matches = [*_NUMBER.finditer(marked[1])][:1] if len(marked) > 1 else []
    matches = matches or [*_NUMBER.finditer(plain)][-1:]
    if not matches:
        return None
    number = matches[0]
    negative = (number["sign"] == "-") != (number["inner"] == "-")
    return "-" * negative + number["digits"].replace(",", "")


def same_number(text: str, other: str) -> bool:
    """Whether two texts end in the same number: 3, 3.0 and 6/2 are one; a division by zero is none.

    >>> same_number("so it is 0.75", "3/4"), same_number("1/4", "3/4"), same_number("none", "none")
    (True, False, False)
    """
    value, right = _value(final_number(text)), _value(final_number(other))
    return value is not None and value == right


def _value(number: str | None) -> Fraction | None:
    try:
        return None if number is None else Fraction(number)
    except (ValueError, ZeroDivisionError):
        return None
