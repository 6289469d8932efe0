"""A value as YAML gave it -> a value of the type that a field declares, or a sentence that says why not.

Accepts what people mean and YAML misreads: ``1e-5`` (a string in YAML 1.1), ``3.0`` for a whole number, ``"true"`` in
quotes, one item for a list, ``a,b`` for a list of names. Nothing else is guessed: 1 is not true, and 5 is not a text.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin


class Unfit(Exception):
    """The value does not fit; its text is the type that was wanted, in words."""


def convert(value: Any, wanted: Any) -> Any:
    """Returns `value` as the type `wanted` (int, float, bool, str, Literal, list, dict, a union, Any, None).

    Raises:
        Unfit: with the wanted type in words.
    """
    origin, args = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return _union(value, wanted, args)
    if origin is Literal:
        for choice in args:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        raise Unfit(type_name(wanted))
    if wanted is Any:
        return plain(value)
    if origin is list:
        items = value if isinstance(value, list | tuple) else _items(value, args[0])
        return [convert(item, args[0]) for item in items]
    if origin is dict and isinstance(value, Mapping):
        return {convert(key, args[0]): convert(item, args[1]) for key, item in value.items()}
    if wanted in (bool, str) and isinstance(value, wanted):
        return value
    if wanted is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if wanted is int and (number := _number(value)) is not None and number == int(number):
        return int(number)
    if wanted is float and (number := _number(value)) is not None:
        return float(number)
    if wanted is types.NoneType and value is None:
        return None
    raise Unfit(type_name(wanted))


def _union(value: Any, wanted: Any, args: Sequence[Any]) -> Any:
    for kind in args:
        try:
            return convert(value, kind)
        except Unfit:
            continue
    raise Unfit(type_name(wanted))


def _items(value: Any, kind: Any) -> list[Any]:
    """One item is a list of one; a text is cut at its commas, as in `dataset: identity,alpaca_en`."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value]


def _number(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, int | float) else None


def type_name(wanted: Any) -> str:
    """The type in the words of a message or a help page: ``a number``, ``one of auto, tree, padded``."""
    origin, args = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(kind) for kind in args)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in args)
    if origin is list:
        return f"a list ({type_name(args[0])} each)"
    if origin is dict:
        return "a mapping"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Any: "anything"}
    return "null" if wanted is types.NoneType else names[wanted]


def found_name(value: Any) -> str:
    """The value and its type as YAML read it: ``5 (a whole number)``, ``'fast' (a text)``."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    shown = (
        {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else repr(value)
    )
    kind = kinds.get(type(value))
    return f"{shown} ({kind})" if kind and not isinstance(value, bool) else shown


def plain(value: Any) -> Any:
    """The same value of plain dicts and lists only (a YAML dumper refuses their subclasses)."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
