"""Option instances -> YAML, a hash, a help table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, NamedTuple, get_type_hints

import yaml

from espalier.config.convert import plain, type_name
from espalier.config.ranges import range_words


class OptionRow(NamedTuple):
    """One row of a help page: ``("seed", "a whole number", 42, "The seed of every random choice.", "at least 0", {})``;
    the last is what else its field says (`espalier.config.option.option`)."""

    key: str
    type: str
    default: Any
    help: str
    range: str
    metadata: Mapping[str, Any]


def dump_yaml(instances: Iterable[Any], *, comments: bool = False) -> str:
    """Option instances -> YAML that `load_yaml` and `build` read back to equal ones, defaults included.

    With `comments`, each class and each key is preceded by its sentence.
    """
    lines = []
    for instance in instances:
        if comments:
            lines += ["", f"# {(type(instance).__doc__ or '').splitlines()[0]}"]
        for item in fields(instance):
            if comments:
                lines.append(f"# {item.metadata['help']}")
            value = {item.name: plain(instance.__dict__[item.name])}
            lines.append(yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=10**6).rstrip("\n"))
    return "\n".join(lines).lstrip("\n") + "\n"


def options_hash(values: Mapping[str, Any]) -> str:
    """The sha256 (hex) of the mapping as canonical JSON: the order of keys does not matter, every value does."""
    text = json.dumps(
        plain(values), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def describe(classes: Sequence[type]) -> list[OptionRow]:
    """Every key of the classes with its type in words, its default, its sentence and its range."""
    rows = []
    for kind in classes:
        hints = get_type_hints(kind)
        for item in fields(kind):
            default = item.default if item.default_factory is MISSING else item.default_factory()
            told, limits = item.metadata["help"], range_words(item.metadata)
            kind_name = type_name(hints[item.name])
            rows.append(OptionRow(item.name, kind_name, default, told, limits, item.metadata))
    return rows
