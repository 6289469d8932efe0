"""Symbolic equality of two answers by math-verify, as the process that compares sees it (see `mathematics`)."""

from __future__ import annotations

import logging

import math_verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it reports every text that is no mathematics


def equal(answer: str, right: str) -> bool:
    """Whether two LaTeX answers are equal as mathematics; without a time limit of its own."""
    # The library's own limits cannot end a product of huge numbers; whoever calls this can.
    gold = math_verify.parse(f"${right}$", parsing_timeout=None)
    parsed = math_verify.parse(f"${answer}$", parsing_timeout=None)
    return bool(math_verify.verify(gold, parsed, timeout_seconds=None))
