"""What a person should know before training, and which of it stops a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from espalier.data.read.account import Account
from espalier.errors import UserError

TRAIN, HELD_OUT = "train", "held out"
ERROR, WARNING = "error", "warning"

_ASKED_FOR = (
    "data_split ",
    "max_samples ",
    "more than ",
    "weight ",
    "mix_strategy ",
    "label is false",
    "left to the template:",
)
"""Beginnings of the causes that the user's own options or the model's template have: counted, but nothing to warn of."""
_ADVICE = {
    "bad record": "a run writes such records to rejected.jsonl",
    "chosen equals rejected": "a pair of equal answers teaches nothing; remove it",
    "all answers score the same": "a ranking needs two different scores; remove it",
    "only one answer": "a ranking needs two answers; use such records for SFT",
    "no answer scores above 0": "such a record teaches nothing as a chat; its answers may serve a reward model",
    "cut: turns at the end": "the answered turns before them are kept; answer or remove them",
    "trimmed: end of the answer": "the model does not learn to stop from these; raise cutoff_len",
    "trimmed": "raise cutoff_len to keep them whole",
    "dropped: no trained token": "every record needs an answer, or text, that is to be learned",
    "dropped: too many characters": "are line breaks between records missing? Split these records",
    "dropped: document": "remove these empty documents",
    "dropped: prompt longer": "raise max_prompt_length or cutoff_len, or say `overlong: trim`",
    "dropped": "raise cutoff_len, or say `overlong: trim`",
}


@dataclass(frozen=True)
class Finding:
    """Something that a person should know: `count` of `of` records, the first of them at `place` (FILE:LINE).

    >>> Finding(WARNING, "equal answers", 2, 300, "a.jsonl:7", "remove them").count
    2
    """

    level: str
    what: str
    count: int
    of: int
    place: str
    advice: str
    part: str = ""
    detail: str = ""
    """A drawing of the first case, where words are not enough."""


@dataclass(frozen=True)
class Cause:
    """Why records were left out or cut: how many, which share of all that were read, and the first of them."""

    cause: str
    count: int
    share: float
    place: str
    reason: str


def left_out(account: Account, of: int) -> list[Cause]:
    """An account with shares of `of` records, most frequent first."""
    return [
        Cause(cause, count, round(count / max(of, 1), 6), *account.first.get(cause, ("", "")))
        for cause, count in account.most_common()
    ]


def unasked(account: Account, of: int) -> list[Finding]:
    """A warning for each cause of the account that no option has asked for."""
    warnings = []
    for cause, count in account.most_common():
        if cause.startswith(_ASKED_FOR):
            continue
        place, reason = account.first.get(cause, ("", ""))
        advice = next((text for start, text in _ADVICE.items() if cause.startswith(start)), "")
        warnings.append(
            Finding(WARNING, cause, count, of, place, "; ".join(t for t in (reason, advice) if t))
        )
    return warnings


def stop_at_errors(findings: Iterable[Finding]) -> None:
    """Raises `UserError` with every error among them."""
    errors = [f for f in findings if f.level == ERROR]
    if errors:
        raise UserError(
            "\n".join(
                f"{f.place}: {f.advice} ({f.what}: {f.count} of {f.of} records of {f.part})"
                + (f"\n{f.detail}" if f.detail else "")
                for f in errors
            )
        )
