"""Answers of mathematical exams: found in a text, and compared with the right ones.

GSM8K: the number after "####", or the last number; commas of thousands, signs of money and a last point don't count.
Others: what stands in the last ``\\boxed{}``, or the last expression; equality is symbolic, by the library
math-verify (extra `exams`).
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cache
from typing import Any

from espalier.exam.judge import library

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?|-?\.\d+")


def final_number(text: str) -> str | None:
    """The number that a worked solution ends in, without commas; None where there is no number.

    >>> final_number("48/2 = <<48/2=24>>24, so 1,224\\n#### 1,224"), final_number("The answer is $-3.50.")
    ('1224', '-3.50')
    """
    marked = text.rsplit("####", 1)
    found = _NUMBER.findall(marked[1]) if len(marked) > 1 else []
    found = found[:1] or _NUMBER.findall(text)[-1:]
    return found[0].replace(",", "").replace("$", "") if found else None


def judge_number(text: str, references: tuple[str, ...]) -> dict[str, float]:
    """1 where the final numbers are equal as numbers: 3, 3.0 and 6/2 are."""
    said = final_number(text)
    right = [number for number in map(final_number, references) if number is not None]
    return {"accuracy": float(said is not None and any(_value(said) == _value(r) for r in right))}


def _value(number: str) -> Fraction | None:
    try:
        return Fraction(number)
    except (ValueError, ZeroDivisionError):
        return None


def boxed(text: str) -> str | None:
    """What stands in the last ``\\boxed{}``, braces balanced; None where there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for at in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : at]
    return None


def judge_expression(text: str, references: tuple[str, ...]) -> dict[str, float]:
    """1 where the answer equals a right one symbolically, or letter by letter where neither is an expression."""
    said = boxed(text) or text.strip()
    return {"accuracy": float(any(_equal(said, boxed(right) or right) for right in references))}


def _equal(said: str, right: str) -> bool:
    if _plain(said) == _plain(right):
        return True
    tools = _tools()
    # The library's own time limits need signals of the main thread; a hanging parse is left out instead.
    gold = tools.parse(f"${right}$", parsing_timeout=None)
    answer = tools.parse(f"${said}$", parsing_timeout=None)
    return bool(tools.verify(gold, answer, timeout_seconds=None))


def _plain(text: str) -> str:
    """Without what does not change an answer: spacing, \\left and \\right, \\text{}, a last point."""
    text = re.sub(r"\\(?:left|right|!|,|;|quad|displaystyle)(?![a-zA-Z])", "", text)
    text = re.sub(
        r"\\(?:text|mathrm|mbox)\{([^{}]*)\}",
        r"\1",
        text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"),
    )
    return re.sub(r"\s+", "", text).rstrip(".").removeprefix("$").removesuffix("$")


@cache
def _tools() -> Any:
    import logging

    tools = library("math_verify", "math-verify")
    logging.getLogger("math_verify").setLevel(
        logging.CRITICAL
    )  # it reports every text that is no mathematics
    return tools
