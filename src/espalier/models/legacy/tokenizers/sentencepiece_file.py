"""The .model file of sentencepiece (Kudo & Richardson 2018): its pieces, and how it normalises text.

A message of protocol buffers, of which a dozen fields matter; read here by their numbers, so that neither
library is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from espalier.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of pieces. Control pieces are never found in text, user-defined ones always and first."""


@dataclass(frozen=True)
class SentencePieceModel:
    """What a .model file says.

    Attributes:
        kind: of the algorithm.
        pieces: (text, score, kind) of each; the place is the id.
        byte_fallback: characters without a piece are written as bytes.
        charsmap: the compiled normalisation, b"" for none.
        dummy_prefix: a space is put before each text.
        squeeze: runs of spaces become one, and those at the ends vanish.
    """

    kind: Literal["bpe", "unigram"]
    pieces: list[tuple[str, float, int]]
    byte_fallback: bool
    charsmap: bytes
    dummy_prefix: bool
    squeeze: bool

    @property
    def unknown(self) -> int:
        """The id of the unknown piece."""
        return next(i for i, (_, _, kind) in enumerate(self.pieces) if kind == UNKNOWN)


def is_sentencepiece(file: Path) -> bool:
    """Whether the file begins as a sentencepiece model does (others call tiktoken files .model too)."""
    with file.open("rb") as stream:
        return stream.read(1) == b"\x0a"


def read_model(file: Path) -> SentencePieceModel:
    """The contents of a .model file.

    Raises:
        UserError: it is none, or of an algorithm other than BPE and unigram.
    """
    try:
        return _read(file.read_bytes())
    except (ValueError, IndexError, struct.error, UnicodeDecodeError, StopIteration) as error:
        raise UserError(
            f"{file}: is no sentencepiece model ({error or type(error).__name__}). Wanted the tokenizer's own "
            ".model file (a small text file here is a pointer of Git LFS: fetch the real one)."
        ) from error


def _read(data: bytes) -> SentencePieceModel:
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int | bytes] = {}
    normaliser: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            assert isinstance(value, bytes)
            own = dict(_fields(value))
            text, score, kind = own.get(1, b""), own.get(2, b"\0\0\0\0"), own.get(3, NORMAL)
            if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
                raise ValueError("a piece without text, score and kind")
            pieces.append((text.decode("utf-8"), struct.unpack("<f", score)[0], kind))
        elif number in (2, 3):
            assert isinstance(value, bytes)
            (trainer if number == 2 else normaliser).update(_fields(value))
    kinds: dict[int | bytes, Literal["bpe", "unigram"]] = {1: "unigram", 2: "bpe"}
    algorithm = trainer.get(3, 1)
    if algorithm not in kinds or not pieces:
        raise ValueError(f"algorithm {algorithm!r} with {len(pieces)} pieces")
    charsmap = normaliser.get(2, b"")
    assert isinstance(charsmap, bytes)
    made = SentencePieceModel(
        kinds[algorithm],
        pieces,
        bool(trainer.get(35, 0)),
        charsmap,
        bool(normaliser.get(3, 1)),
        bool(normaliser.get(4, 1)),
    )
    _ = made.unknown
    return made


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a message: integers as they are, everything else as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("it ends too early")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
