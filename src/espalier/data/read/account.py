"""What was left out or cut on the way from a file to a tree: how much by cause, and where it happened first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


class Account(Counter[str]):
    """Counts by cause, each with the place and the reason of its first case.

    >>> account = Account()
    >>> account.add("empty answer", "a.jsonl:7", "column 'output' is empty")
    >>> account.add("empty answer", "a.jsonl:9")
    >>> account, account.first["empty answer"]
    (Account({'empty answer': 2}), ('a.jsonl:7', "column 'output' is empty"))
    """

    def __init__(self, counts: Mapping[str, int] | None = None, /) -> None:
        super().__init__(counts)
        self.first: dict[str, tuple[str, str]] = {}
        """Cause -> (place, reason) of its first case; the reason may be empty."""

    def add(self, cause: str, place: str, reason: str = "") -> None:
        """One case more."""
        self[cause] += 1
        self.first.setdefault(cause, (place, reason))

    def take_in(self, other: Account) -> None:
        """Add all of another account; what it saw first comes behind what was seen here."""
        for cause, count in other.items():
            self[cause] += count
        self.first = {**other.first, **self.first}

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to other processes with its first cases, which a plain Counter would lose."""
        return _restored, (dict(self), self.first)


def _restored(counts: Mapping[str, int], first: dict[str, tuple[str, str]]) -> Account:
    account = Account(counts)
    account.first = first
    return account
