"""Records of more tokens than fit, where that is an error: all of them are counted before one message is made."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.errors import UserError


@dataclass
class TooLong:
    """How many records are too long, the first of them and the longest.

    >>> long = TooLong("cutoff_len", 256)
    >>> for line, tokens in ((7, 300), (9, 1024), (12, 400)):
    ...     long.add(f"a.jsonl:{line}", tokens)
    >>> long.first, long.longest, long.count
    (('a.jsonl:7', 300), ('a.jsonl:9', 1024), 3)

    Attributes:
        key, limit: the option that they are too long for, in tokens.
        first, longest: place and tokens.
    """

    key: str
    limit: int
    count: int = 0
    first: tuple[str, int] = ("", 0)
    longest: tuple[str, int] = ("", 0)

    def add(self, place: str, tokens: int) -> None:
        """One record more."""
        self.take_in(TooLong(self.key, self.limit, 1, (place, tokens), (place, tokens)))

    def take_in(self, other: TooLong) -> None:
        """Add what was found behind these records."""
        assert (self.key, self.limit) == (other.key, other.limit)
        self.first = self.first if self.count else other.first
        self.longest = max(self.longest, other.longest, key=lambda found: found[1])
        self.count += other.count

    def error(self, records: int) -> TooLongError:
        """The error about them; `records`: how many there are, these among them."""
        place, tokens = self.first
        found = f"{place}: {tokens:,} tokens, but {self.key} is {self.limit:,}"
        if self.count > 1:
            found += (
                f" (the first of {self.count:,} such records among {records:,}; the longest is {self.longest[0]} with "
                f"{self.longest[1]:,})"
            )
        fits = f"`{self.key}: {self.longest[1]}`, into which all fit"
        if self.key == "max_prompt_length":  # what cutoff_len leaves beside an answer bounds it, too
            fits = f"a `cutoff_len` (and `{self.key}`) that leaves prompts {self.longest[1]:,} tokens"
        which = "them" if self.count > 1 else "it"
        return TooLongError(
            self,
            records,
            f"{found}; run again with `overlong: drop`, which leaves {which} out, or `overlong: trim`, which shortens "
            f"{which} (both are counted and shown), or with {fits}",
        )


class TooLongError(UserError):
    """Raised when all records of a stretch have been looked at; knows what is too long among how many `records`."""

    def __init__(self, found: TooLong, records: int, text: str) -> None:
        super().__init__(text)
        self.found, self.records = found, records
