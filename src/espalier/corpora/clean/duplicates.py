"""Copies and near copies out of a stream of records; the first of them stays.

Copies are found in one pass, with a number for each text on disk. Near copies need two: all records are put away
on disk with the keys of their signatures' bands, then candidates are compared exactly, so that nothing is taken out
that does not share `threshold` of its shingles with a record that stays. Memory: about 50 bytes a record.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from espalier.corpora.clean.minhash import Pairs, Signatures, Signer, across, band_keys, bands_for, candidates
from espalier.corpora.clean.shingles import Numbers, jaccard, shingles
from espalier.corpora.clean.view import viewed
from espalier.corpora.made import DEV, CorpusRecord, Division, Omission, Outcomes, digest
from espalier.disk.temporary import temporary_folder

SHOWN = 20
"""Examples of each step in the report."""


def without_copies(outcomes: Outcomes, account: dict[str, Any]) -> Outcomes:
    """Takes out records whose text differs from an earlier one in nothing but spaces, case, width and marks."""
    account.update(removed=0, examples=[])
    with temporary_folder() as folder:
        base = sqlite3.connect(Path(folder) / "seen.sqlite", isolation_level=None)
        for line in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            "CREATE TABLE seen (number INTEGER PRIMARY KEY, source TEXT)",
            "BEGIN",
        ):
            base.execute(line)
        for thing in outcomes:
            text = _text(thing)
            if not isinstance(thing, CorpusRecord) or text is None:
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
            yield Omission(thing.source, "a copy of an earlier record", f"{kept}: {text}")
        base.close()


def without_near_copies(outcomes: Outcomes, threshold: float, account: dict[str, Any]) -> Outcomes:
    """Takes out records that share at least `threshold` (0 to 1) of their shingles with an earlier one that stays."""
    bands, rows = bands_for(threshold)
    account.update(threshold=threshold, bands=bands, rows=rows, compared=0, removed=0, examples=[])
    with temporary_folder() as folder:
        spool = _Spool(Path(folder), bands, rows)
        yield from spool.fill(outcomes)
        pairs = candidates(spool.keys())
        yield from spool.without(pairs, threshold, account, "a near copy of an earlier record")


def without_near_copies_of_dev(
    outcomes: Outcomes, threshold: float, division: Division, account: dict[str, Any]
) -> Outcomes:
    """Takes out of train what shares at least `threshold` (0 to 1) of its shingles with a record of dev."""
    bands, rows = bands_for(threshold)
    account.update(threshold=threshold, compared=0, removed=0, examples=[])
    with temporary_folder() as folder:
        spool = _Spool(Path(folder), bands, rows)
        dev = array("q")
        yield from spool.fill(outcomes, lambda made: made.part or division.part(made.key), dev)
        few = np.asarray(dev, np.int64)
        pairs = across(spool.keys(), few)
        pairs = pairs[~np.isin(pairs[:, 0], few)]
        yield from spool.without(pairs, threshold, account, "a near copy of a record of dev")


class _Spool:
    """Records on disk, reached by their number, and for each band the keys of all of them."""

    def __init__(self, folder: Path, bands: int, rows: int) -> None:
        self._folder, self._bands, self._rows = folder, bands, rows
        self._signer = Signer(bands * rows)
        self._file = (folder / "records").open("w+b")
        self._starts = array("q")
        self._end = 0

    def fill(
        self,
        outcomes: Outcomes,
        part: Callable[[CorpusRecord], str] | None = None,
        dev: array[int] | None = None,
    ) -> Outcomes:
        """Puts all records away and lets through what cannot be compared; `dev` gets the numbers of dev's records."""
        waiting: list[Signatures] = []
        for thing in outcomes:
            text = _text(thing)
            marks = shingles(text) if text else None
            if not isinstance(thing, CorpusRecord) or text is None or marks is None or not len(marks):
                yield thing
                continue
            if part is not None and dev is not None and part(thing) == DEV:
                dev.append(len(self._starts))
            waiting.append(self._signer.sign(marks))
            if len(waiting) == 256:
                self._write_keys(waiting)
                waiting = []
            fields = [thing.row, thing.key, thing.source, thing.group, thing.part, text]
            self._starts.append(self._end)
            self._end += self._file.write(json.dumps(fields, default=str).encode() + b"\n")
        self._write_keys(waiting)

    def _write_keys(self, signatures: list[Signatures]) -> None:
        if signatures:
            for band, key in enumerate(band_keys(np.stack(signatures), self._bands, self._rows)):
                with (self._folder / f"band-{band}").open("ab") as stream:
                    stream.write(key.tobytes())

    def keys(self) -> Iterator[Numbers]:
        """(N,) of each band, one in memory at a time."""
        if len(self._starts):
            for band in range(self._bands):
                yield np.fromfile(self._folder / f"band-{band}", np.uint64)

    def get(self, number: int) -> tuple[CorpusRecord, str]:
        self._file.seek(self._starts[number])
        *fields, text = json.loads(self._file.readline())
        return CorpusRecord(*fields), text

    def without(self, pairs: Pairs, threshold: float, account: dict[str, Any], cause: str) -> Outcomes:
        """All records in their order, but of each pair (may go, may stay) that is alike the first, if the other stays.

        `pairs` (P, 2) are sorted by the first.
        """
        gone = self._alike(pairs, threshold, account)
        for number in range(len(self._starts)):
            thing, text = self.get(number)
            if number not in gone:
                yield thing
                continue
            kept, share = gone[number]
            other, other_text = self.get(kept)
            example = {"source": thing.source, "near_copy_of": other.source, "similarity": round(share, 3)}
            account["removed"] += 1
            _show(account, {**example, "text": text[:200], "kept": other_text[:200]})
            yield Omission(thing.source, cause, f"{other.source} ({share:.2f}): {text}")

    def _alike(self, pairs: Pairs, threshold: float, account: dict[str, Any]) -> dict[int, tuple[int, float]]:
        """Number of what goes -> (the record that stays in its place, their similarity)."""
        account["compared"] = len(pairs)
        gone: dict[int, tuple[int, float]] = {}
        current, marks = -1, shingles("")
        for number, other in (pair.tolist() for pair in pairs):
            if number in gone or other in gone:
                continue
            if number != current:
                current, marks = number, shingles(self.get(number)[1])
            share = jaccard(marks, shingles(self.get(other)[1]))
            if share >= threshold:
                gone[number] = (other, share)
        return gone


def _text(thing: CorpusRecord | Omission) -> str | None:
    """What tells copies apart; None where the row cannot be seen through, and it is left alone."""
    if isinstance(thing, Omission):
        return None
    view = viewed(thing.row, thing.source)
    return None if isinstance(view, Omission) else view.text


def _show(account: dict[str, Any], example: dict[str, Any]) -> None:
    if len(account["examples"]) < SHOWN:
        account["examples"].append(example)
