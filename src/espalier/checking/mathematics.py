"""Answers of mathematical exams: found in a text, and compared with the right ones.

GSM8K: the number after "####", or the last number (`espalier.maths.numerals`).
Others: what stands in the last ``\\boxed{}``, or the last expression; equality is symbolic, by the library
math-verify (extra `exams`), in a process of its own with a time limit (see `SECONDS`).
"""

from __future__ import annotations

import re
from importlib.util import find_spec

from espalier.checking.library import library
from espalier.engine.limited import Died, Limited, TimedOut
from espalier.maths.numerals import final_number, same_number

SECONDS = 5.0
"""For one comparison. Those of real exams take 0.01 to 0.5 seconds, so a loaded machine may be ten times slower; what
takes longer is a tower of powers or a factorial that no computer writes out."""

MEMORY = 4 << 30
"""Bytes of address space of the process that compares: a number with billions of digits must not fill the machine."""

NOT_COMPARABLE = "not_comparable"

_judge = Limited("espalier.checking.equality:equal", memory=MEMORY)


def judge_number(text: str, references: tuple[str, ...]) -> dict[str, float]:
    """1 where the final numbers are equal as numbers: 3, 3.0 and 6/2 are; {} where no right answer holds a number."""
    if all(final_number(reference) is None for reference in references):
        return {}
    return {"accuracy": float(any(same_number(text, reference) for reference in references))}


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
    """1 where the answer equals a right one symbolically, or letter by letter where neither is an expression.

    An answer that was not compared within `SECONDS` (``9^{9^{9}}``) counts as wrong, and as ``not_comparable``, which
    exams count by itself.
    """
    answer = boxed(text) or text.strip()
    lost = False
    for right in references:
        try:
            if _equal(answer, boxed(right) or right):
                return {"accuracy": 1.0}
        except (TimedOut, Died):
            lost = True
    return {"accuracy": 0.0} | ({NOT_COMPARABLE: 1.0} if lost else {})


def _equal(answer: str, right: str) -> bool:
    if _plain(answer) == _plain(right):
        return True
    if find_spec("math_verify") is None:
        library("math_verify", "math-verify")
    try:
        return bool(_judge.call(answer, right, seconds=SECONDS))
    except RuntimeError as error:  # the library's own, such as a MemoryError or a recursion
        raise Died(str(error)) from error


def _plain(text: str) -> str:
    """Without what does not change an answer: spacing, \\left and \\right, \\text{}, a last point."""
    text = re.sub(r"\\(?:left|right|!|,|;|quad|displaystyle)(?![a-zA-Z])", "", text)
    text = re.sub(
        r"\\(?:text|mathrm|mbox)\{([^{}]*)\}",
        r"\1",
        text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"),
    )
    return re.sub(r"\s+", "", text).rstrip(".").removeprefix("$").removesuffix("$")
