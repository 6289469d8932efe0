"""How a key is declared: one field of a small dataclass, with its sentence and its range."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """One key: its default, its sentence, and its range (``min``/``max`` inclusive, ``above``/``below`` not)."""
    limits = {"min": min, "max": max, "above": above, "below": below}
    metadata = {"help": help} | {name: limit for name, limit in limits.items() if limit is not None}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


class Options:
    """The base of every option class; overrides `problems` where keys depend on each other."""

    def problems(self) -> list[str]:
        """Whole sentences, one for each pair of keys that contradict each other, with the remedy."""
        return []
