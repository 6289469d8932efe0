"""Values of a user's row as text, labels and weights, checked: what is none raises `Bad`, with the cure in its reason."""

from __future__ import annotations

import json
import re
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")  # JSON can write half of a character; no tokenizer takes it


class Bad(Exception):
    """A row is no record; becomes a `BadRecord` at the place where the row's source is known."""

    def __init__(self, cause: str, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause
        self.reason = reason


def shown(value: Any) -> str:
    """A value as it may stand in an error message: its kind and the beginning of it."""
    if value is None:
        return "null"
    kinds = {
        bool: "true/false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    text = json.dumps(value, ensure_ascii=False, default=str)
    return (
        f"{kinds.get(type(value), type(value).__name__)} ({text if len(text) <= 60 else text[:57] + '...'})"
    )


def as_text(value: Any, what: str, *, may_be_empty: bool = False) -> str:
    """`value` if it is text. `what` names the place ("column 'output'").

    Raises `Bad` for anything but text, and for empty or blank text unless `may_be_empty`, when null is "".
    """
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        if value is None:
            raise Bad("empty text", f"{what} is null, wanted text; fill it in or remove the record")
        raise Bad(
            "not text", f"{what} holds {shown(value)}, wanted text; put it in quotes or name another column"
        )
    if not may_be_empty and not value.strip():
        raise Bad("empty text", f"{what} is empty; fill it in or remove the record")
    if not value.isascii() and _HALF.search(value):
        raise Bad(
            "broken character",
            f"{what} holds half a character (a lone surrogate such as \\ud83d); repair the text",
        )
    return value


def as_label(value: Any) -> bool | None:
    """True or False by any of the names that labels have; None for anything else."""
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    return {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None
