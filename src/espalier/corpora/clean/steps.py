"""The cleaning steps in their order: mask, filter, copies, near copies, exams. What is not asked for costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.corpora.clean.contamination import without_exam_items
from espalier.corpora.clean.duplicates import without_copies, without_near_copies, without_near_copies_of_dev
from espalier.corpora.clean.personal import without_personal_data
from espalier.corpora.clean.quality import filtered
from espalier.corpora.made import Division, Outcomes

DEDUP = ("none", "exact", "near")


@dataclass(frozen=True)
class Cleaning:
    """What is wanted; the defaults change nothing."""

    dedup: str = "none"
    """`exact`: copies but for spaces, case, width and marks; `near`: also texts that share most of their shingles."""
    near: float = 0.8
    """From which Jaccard similarity of shingles on two texts are near copies, above 0 to 1."""
    apart: bool = True
    """Whether near copies of dev's records are taken out of train; where everything is compared, they are anyway."""
    mask: bool = False
    """Whether phone numbers, e-mail addresses and identity numbers are masked."""
    min_chars: int = 0
    """The shortest text that stays."""
    max_chars: int | None = None
    """The longest text that stays."""
    languages: tuple[str, ...] = ()
    """The languages that stay (see `quality.LANGUAGES`); none: all of them."""
    max_repetition: float | None = None
    """The largest share of repeated runs that stays, 0 to 1."""
    exams: tuple[Path, ...] = ()
    """Exam files or folders whose items no record may contain."""


def cleaned(outcomes: Outcomes, cleaning: Cleaning, division: Division, accounts: dict[str, Any]) -> Outcomes:
    """`outcomes` without what the steps take out; `accounts` gets each step's numbers and examples as it goes by."""
    assert cleaning.dedup in DEDUP, cleaning.dedup

    def account(name: str) -> dict[str, Any]:
        own: dict[str, Any] = {}
        accounts[name] = own
        return own

    if cleaning.mask:
        outcomes = without_personal_data(outcomes, account("personal_data"))
    bounds = (cleaning.min_chars, cleaning.max_chars, cleaning.languages, cleaning.max_repetition)
    if bounds != (0, None, (), None):
        outcomes = filtered(
            outcomes,
            account("quality"),
            min_chars=cleaning.min_chars,
            max_chars=cleaning.max_chars,
            languages=cleaning.languages,
            max_repetition=cleaning.max_repetition,
        )
    if cleaning.dedup != "none":
        outcomes = without_copies(outcomes, account("copies"))
    if cleaning.dedup == "near":
        outcomes = without_near_copies(outcomes, cleaning.near, account("near_copies"))
    elif cleaning.apart and division.dev:
        outcomes = without_near_copies_of_dev(
            outcomes, cleaning.near, division, account("near_copies_of_dev")
        )
    if cleaning.exams:
        outcomes = without_exam_items(outcomes, cleaning.exams, account("exams"))
    return outcomes
