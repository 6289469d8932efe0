"""The smallest part of a written conversation: a stretch of text that is trained or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text; `trained` says whether the model learns to write it.

    >>> [Piece("User:\\n2+3=?\\nAssistant:\\n", False), Piece("5</s>", True), Piece("\\n", False)][1].trained
    True
    """

    text: str
    trained: bool


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same text in the fewest pieces, none of them empty."""
    found: list[Piece] = []
    for piece in pieces:
        if not piece.text:
            continue
        if found and found[-1].trained == piece.trained:
            found[-1] = Piece(found[-1].text + piece.text, piece.trained)
        else:
            found.append(piece)
    return found
