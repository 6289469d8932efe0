"""What a corpus becomes: records on their way to a file, what is left out, and which part a record belongs to.

A part is "train" or "dev". It follows from a hash of the record's key (usually its prompt), so that it does not
depend on the order of the corpus, on other records, or on Python's own hashes; equal keys never part.
"""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from espalier.data.records import USER, Record

_FLESH = re.compile(r"[\W_]+")

TRAIN, DEV = "train", "dev"
PARTS = (TRAIN, DEV)


@dataclass(frozen=True, slots=True)
class CorpusRecord:
    """One record to be written: `row` is its JSON object, `key` what decides its part.

    >>> CorpusRecord({"prompt": "上联：风", "answers": []}, key="风", source="couplets.txt:1").key
    '风'
    """

    row: dict[str, Any]
    key: str
    source: str
    group: str = ""
    """What the statistics count it under: a book, a file, a genre."""
    part: str = ""
    """The part, where the source itself says it; "" where it follows from the key."""


@dataclass(frozen=True, slots=True)
class Omission:
    """Something of the source that became no record.

    `cause` is short enough to be counted, `text` a beginning of it, `reason` what was found and wanted, where that says
    more than the cause.
    """

    source: str
    cause: str
    text: str = ""
    reason: str = ""


Outcomes = Iterator[CorpusRecord | Omission]


@dataclass(frozen=True)
class Division:
    """How records are divided and how chance is drawn: `dev` is the share (0 to 1) of keys that train never sees."""

    seed: int = 42
    dev: float = 0.01
    _salt: bytes = field(init=False, repr=False, default=b"")

    def __post_init__(self) -> None:
        assert 0 <= self.dev <= 1, self.dev
        object.__setattr__(self, "_salt", f"{self.seed}".encode())

    def part(self, key: str) -> str:
        """The part of all records with this key; keys that differ only in spaces, case, width or marks are one."""
        if not self.dev:
            return TRAIN
        digest = hashlib.blake2b(
            skeleton(key).encode("utf-8", "replace"), digest_size=8, salt=self._salt[:16]
        )
        return DEV if int.from_bytes(digest.digest(), "big") < self.dev * 2**64 else TRAIN

    def chance(self, *names: object) -> random.Random:
        """A source of chance of its own for one thing: the same for the same seed and names, whatever came before."""
        return random.Random("\0".join(map(str, (self.seed, *names))))


def digest(text: str) -> int:
    """A number of 64 bits for all texts with one skeleton, the same in every process."""
    return int.from_bytes(
        hashlib.blake2b(skeleton(text).encode("utf-8", "replace"), digest_size=8).digest(), "big"
    )


def skeleton(text: str) -> str:
    """Text without what two copies of it may differ in: width, case, white space, punctuation.

    >>> skeleton("Ｈello, 世界！") == skeleton("hello世界")
    True
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _FLESH.sub("", folded) or folded


def ranking(prompt: str, prefix: str, answers: list[tuple[str, float]]) -> dict[str, Any]:
    """A ranking row, answers from best to worst; equals stay in their order.

    >>> ranking("上联：风", "下联：", [("花", 0), ("雨", 1)])["answers"][0]
    {'answer': '雨', 'score': 1}
    """
    ordered = sorted(answers, key=lambda answer: -answer[1])
    return {
        "prompt": prompt,
        "answers": [{"answer": text, "score": score} for text, score in ordered],
        "prefix": prefix,
    }


def one_line(value: object) -> str:
    """Text without line breaks, as the corpora's answers are kept; anything but text is the empty text."""
    return value.replace("\r", "").replace("\n", "") if isinstance(value, str) else ""


def key_of(record: Record) -> str:
    """What must not stand in both parts: what the user says before the first answer, whatever the system turn."""
    return "\n".join(message.content for message in record.opening if message.role == USER)
