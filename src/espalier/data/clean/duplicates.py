"""Copies and near copies out of a stream of records; the first of them stays.

Copies are found in one pass, with a number for each text on disk. Near copies need two: all records are put away
on disk with their signatures, then candidates are compared exactly, so that nothing is taken out that does not
share `threshold` of its shingles with a record that stays. Memory: about 40 bytes a record.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from espalier.data.clean.minhash import Signer, bands_for, candidates
from espalier.data.clean.shingles import jaccard, shingles
from espalier.data.clean.view import viewed
from espalier.data.prepare.made import Found, Made, Without, digest

SHOWN = 20
"""Examples of each step in the report."""


def without_copies(found: Found, account: dict[str, Any]) -> Found:
    """Takes out records whose text differs from an earlier one in nothing but spaces, case, width and marks."""
    account.update(removed=0, examples=[])
    with tempfile.TemporaryDirectory(prefix="espalier-") as folder:
        base = sqlite3.connect(Path(folder) / "seen.sqlite", isolation_level=None)
        for line in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            "CREATE TABLE seen (number INTEGER PRIMARY KEY, source TEXT)",
            "BEGIN",
        ):
            base.execute(line)
        for thing in found:
            text = _text(thing)
            if not isinstance(thing, Made) or text is None:
                yield thing
                continue
            number = digest(text) - 2**63  # SQLite's integers have a sign
            put = "INSERT OR IGNORE INTO seen VALUES (?, ?)"
            if base.execute(put, (number, thing.source)).rowcount:
                yield thing
                continue
            [kept] = base.execute("SELECT source FROM seen WHERE number = ?", (number,)).fetchone()
            account["removed"] += 1
            _show(account, {"source": thing.source, "copy_of": kept, "text": text[:200]})
            yield Without(thing.source, "a copy of an earlier record", f"{kept}: {text}")
        base.close()


def without_near_copies(found: Found, threshold: float, account: dict[str, Any]) -> Found:
    """Takes out records that share at least `threshold` (0 to 1) of their shingles with an earlier one that stays."""
    bands, rows = bands_for(threshold)
    account.update(threshold=threshold, bands=bands, rows=rows, compared=0, removed=0, examples=[])
    signer = Signer(bands * rows)
    with tempfile.TemporaryDirectory(prefix="espalier-") as folder:
        spool = _Spool(Path(folder))
        with (Path(folder) / "signatures").open("wb") as signatures:
            for thing in found:
                text = _text(thing)
                marks = shingles(text) if text else None
                if not isinstance(thing, Made) or marks is None or not len(marks):
                    yield thing
                    continue
                signatures.write(signer.sign(marks).tobytes())
                spool.add(thing, text or "")
        if not len(spool):
            return
        signed = np.memmap(Path(folder) / "signatures", np.uint32, "r", shape=(len(spool), bands * rows))
        like = _near_earlier(spool, candidates(signed, bands, rows), threshold, account)
        for number in range(len(spool)):
            thing, text = spool.get(number)
            if number not in like:
                yield thing
                continue
            kept, share = like[number]
            other, other_text = spool.get(kept)
            example = {"source": thing.source, "near_copy_of": other.source, "similarity": round(share, 3)}
            account["removed"] += 1
            _show(account, {**example, "text": text[:200], "kept": other_text[:200]})
            yield Without(
                thing.source, "a near copy of an earlier record", f"{other.source} ({share:.2f}): {text}"
            )


def _near_earlier(
    spool: _Spool, pairs: Iterator[tuple[int, int]], threshold: float, account: dict[str, Any]
) -> dict[int, tuple[int, float]]:
    """Which records go: number -> (the record that stays in its place, their similarity)."""
    edges = sorted({(later, earlier) for earlier, later in pairs})
    account["compared"] = len(edges)
    gone: dict[int, tuple[int, float]] = {}
    current, marks = -1, shingles("")
    for later, earlier in edges:
        if later in gone or earlier in gone:
            continue
        if later != current:
            current, marks = later, shingles(spool.get(later)[1])
        share = jaccard(marks, shingles(spool.get(earlier)[1]))
        if share >= threshold:
            gone[later] = (earlier, share)
    return gone


class _Spool:
    """Records on disk, reached by their number."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "records").open("w+b")
        self._starts = array("q")
        self._end = 0
        self._reading = False

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, made: Made, text: str) -> None:
        line = json.dumps(
            [made.row, made.key, made.source, made.group, made.part, text], default=str
        ).encode()
        self._starts.append(self._end)
        self._end += self._file.write(line + b"\n")

    def get(self, number: int) -> tuple[Made, str]:
        self._file.seek(self._starts[number])
        *fields, text = json.loads(self._file.readline())
        return Made(*fields), text


def _text(thing: Made | Without) -> str | None:
    """What tells copies apart; None where the row cannot be seen through, and it is left alone."""
    if isinstance(thing, Without):
        return None
    view = viewed(thing.row, thing.source)
    return None if isinstance(view, Without) else view.text


def _show(account: dict[str, Any], example: dict[str, Any]) -> None:
    if len(account["examples"]) < SHOWN:
        account["examples"].append(example)
