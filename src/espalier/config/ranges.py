"""The range of a number: the limits that an option declares, in words and as a check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "min": ("at least", lambda value, limit: value >= limit),
    "above": ("more than", lambda value, limit: value > limit),
    "max": ("at most", lambda value, limit: value <= limit),
    "below": ("less than", lambda value, limit: value < limit),
}
"""What `option_base.option` takes: how it is said, and whether a value keeps it."""


def range_words(metadata: Mapping[str, Any]) -> str:
    """The limits of a field's metadata in words; "" where there is none.

    >>> range_words({"help": "A share.", "min": 0, "below": 1})
    'at least 0 and less than 1'
    """
    return " and ".join(
        f"{words} {metadata[name]}" for name, (words, _) in LIMITS.items() if name in metadata
    )


def in_range(value: Any, metadata: Mapping[str, Any]) -> bool:
    """Whether a value keeps the limits; what is no number has none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return all(holds(value, metadata[name]) for name, (_, holds) in LIMITS.items() if name in metadata)
