"""What a single text may cost: a tokenizer needs some hundred bytes of memory for each character that it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from espalier.data.encode.encoding import encode_texts
from espalier.data.encode.pieces import Piece
from espalier.errors import UserError

_LONG = 1 << 20
"""Characters of a text that are tokenised at once."""
_LONGEST = 1 << 22
"""Characters from which a conversation is too long for any `cutoff_len` without being tokenised."""


def is_long(text: str) -> bool:
    """Whether a text is tokenised in stretches."""
    return len(text) > _LONG


def in_stretches(tokenizer: Any, text: str) -> Iterator[list[int]]:
    """The tokens of a long text a stretch at a time, cut behind a line break, or else anywhere."""
    start = 0
    while start < len(text):
        end = start + _LONG
        line = text.rfind("\n", start, end) + 1 if end < len(text) else len(text)
        end = line if line > start else min(end, len(text))
        yield encode_texts(tokenizer, [text[start:end]])[0]
        start = end


def is_endless(branches: Sequence[Sequence[Piece]], cutoff_len: int) -> bool:
    """Whether a branch has so many characters that it need not be tokenised to be known as too long.

    No tokenizer's tokens have 64 characters on average, so nothing below the limit is wronged.
    """
    return _characters(branches) > min(max(_LONG, 64 * cutoff_len), _LONGEST)


def endless(source: str, branches: Sequence[Sequence[Piece]], cutoff_len: int) -> UserError:
    """The error about such a record."""
    return UserError(
        f"{source}: {_characters(branches):,} characters in one record, but cutoff_len is {cutoff_len} tokens; are "
        "line breaks between records missing? Split it, or say `overlong: drop` to leave it out"
    )


def _characters(branches: Sequence[Sequence[Piece]]) -> int:
    return max((sum(len(piece.text) for piece in pieces) for pieces in branches), default=0)
