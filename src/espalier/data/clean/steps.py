"""The cleaning steps in their order: mask, quality, duplicates, exams. What none of them asks for costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.data.prepare.made import Division, Found

DEDUP = ("none", "exact", "near")


@dataclass(frozen=True)
class Cleaning:
    """What is wanted; the defaults change nothing."""

    dedup: str = "none"
    """`exact`: copies but for spaces, case, width and marks; `near`: also texts that share most of their shingles."""
    near: float = 0.8
    """From which Jaccard similarity of shingles on two texts are near duplicates."""
    exams: tuple[Path, ...] = ()
    """Exam files or folders that the records are compared with."""


def cleaned(found: Found, cleaning: Cleaning, division: Division, accounts: dict[str, Any]) -> Found:
    """`found` without what the steps take out; `accounts` gets each step's own numbers."""
    return found
