"""Records that contain questions of an exam, found by runs of characters or words that both have.

An exam is a file, or a folder with all files below it; every text in it of at least one run (13 characters of
Chinese, 8 words of other scripts) is an item, and of a row without such a text its longest, if it is at least 8
characters or 5 words and not mostly digits; so short options are none. A record is contaminated by an item when it
has at least half of its runs. Single runs, which exams share with every textbook ("which of the following is
right"), are so no reason to lose a record.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from espalier.corpora.clean.shingles import Numbers, Units, grams
from espalier.corpora.clean.view import viewed
from espalier.corpora.made import CorpusRecord, Omission, Outcomes
from espalier.data.read.files import data_files, read_rows
from espalier.data.read.lines import open_text, readable
from espalier.data.read.packed import inner_name
from espalier.data.records import BadRecord
from espalier.errors import UserError

RUN = {True: 13, False: 8}
"""Units in a run: Chinese, other."""
SHORTEST = {True: 8, False: 5}
_PARTS = ("data", "dev", "test", "train", "val", "valid", "validation")
SHARE = 0.5
SHOWN = 20


class Exams:
    """An index of all runs of all items; memory grows with the exams, not with the data."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.names: list[str] = []
        self._exam: list[int] = []  # of each item
        self._place: list[str] = []
        self._length: list[int] = []  # runs of each item
        runs: dict[tuple[bool, int], list[tuple[Numbers, int]]] = {}
        for name, files in _exams(paths):
            self.names.append(name)
            texts = (found for path in files for found in exam_texts(path))
            for place, row in groupby(texts, key=lambda found: found[0]):
                for item in _items([text for _, text in row]):
                    self._add(place, *item, runs)
        self._index: dict[tuple[bool, int], tuple[Numbers, Any]] = {}
        for kind, found in runs.items():
            hashes = np.concatenate([marks for marks, _ in found])
            items = np.concatenate([np.full(len(marks), item) for marks, item in found])
            order = np.argsort(hashes, kind="stable")
            self._index[kind] = hashes[order], items[order]

    def __len__(self) -> int:
        return len(self._exam)

    def items_of(self, exam: int) -> int:
        return self._exam.count(exam)

    def _add(
        self, place: str, chinese: bool, row: Numbers, runs: dict[tuple[bool, int], list[tuple[Numbers, int]]]
    ) -> None:
        size = min(len(row), RUN[chinese])
        marks = np.unique(grams(row, size))
        runs.setdefault((chinese, size), []).append((marks, len(self._exam)))
        self._exam.append(len(self.names) - 1)
        self._place.append(place)
        self._length.append(len(marks))

    def hits(self, text: str) -> list[tuple[str, str, float]]:
        """(exam, place of the item, share of its runs that are in the text), the share at least `SHARE`."""
        units = Units.of(text)
        rows = {chinese: units.numbers(chinese) for chinese in {chinese for chinese, _ in self._index}}
        found = []
        for (chinese, size), (hashes, items) in self._index.items():
            marks = np.unique(grams(rows[chinese], size))
            first, behind = np.searchsorted(hashes, marks, "left"), np.searchsorted(hashes, marks, "right")
            places = np.flatnonzero(behind > first)
            if not len(places):
                continue
            met = np.concatenate([items[first[place] : behind[place]] for place in places])
            for item, count in zip(*np.unique(met, return_counts=True), strict=True):
                share = count / self._length[item]
                if share >= SHARE:
                    found.append((self.names[self._exam[item]], self._place[item], float(share)))
        return found


def without_exam_items(found: Outcomes, paths: tuple[Path, ...], account: dict[str, Any]) -> Outcomes:
    """Takes out contaminated records; the account says for each exam how many of its items and of the records."""
    exams = Exams(paths)
    for number, name in enumerate(exams.names):
        account[name] = {
            "items": exams.items_of(number),
            "items_found": 0,
            "records_removed": 0,
            "examples": [],
        }
    seen: set[str] = set()
    for thing in found:
        view = viewed(thing.row, thing.source) if isinstance(thing, CorpusRecord) else None
        hits = exams.hits(view.text) if view is not None and not isinstance(view, Omission) else []
        if not isinstance(thing, CorpusRecord) or view is None or isinstance(view, Omission) or not hits:
            yield thing
            continue
        for name in {name for name, _, _ in hits}:
            account[name]["records_removed"] += 1
        for name, place, share in hits:
            if place not in seen:
                seen.add(place)
                account[name]["items_found"] += 1
            if len(account[name]["examples"]) < SHOWN:
                example = {"source": thing.source, "item": place, "share": round(share, 3)}
                account[name]["examples"].append({**example, "text": view.text[:200]})
        name, place, share = max(hits, key=lambda hit: hit[2])
        yield Omission(thing.source, f"has an item of {name}", f"{place} ({share:.0%}): {view.text}")


def _items(texts: list[str]) -> list[tuple[bool, Numbers]]:
    """(Chinese?, units) of the items among the texts of one row of an exam."""
    found = []
    for text in texts:
        units = Units.of(text)
        if 2 * sum(map(str.isdigit, "".join(units.words))) < len(units.characters):
            found.append((units.is_chinese, units.numbers(units.is_chinese)))
    whole = [(chinese, row) for chinese, row in found if len(row) >= RUN[chinese]]
    if whole or not found:
        return whole
    chinese, row = max(found, key=lambda item: len(item[1]) / SHORTEST[item[0]])
    return [(chinese, row)] if len(row) >= SHORTEST[chinese] else []


def _exams(paths: tuple[Path, ...]) -> Iterator[tuple[str, list[Path]]]:
    """(name, files): a file is an exam, and so is a folder; but a folder of nothing but folders is one exam for each,
    unless these are called as the parts of one (dev, test, …)."""
    for path in paths:
        if path.is_file():
            yield inner_name(path).rsplit(".", 1)[0], [path]
            continue
        if not path.is_dir():
            raise UserError(
                f"--exams {path}: no such file or folder; wanted exam files, or a folder of exams"
            )
        files = data_files(path, "exam")
        names = sorted({file.relative_to(path).parts[0] for file in files})
        if any(file.parent == path for file in files) or all(name.lower() in _PARTS for name in names):
            yield path.resolve().name, files
            continue
        for name in names:
            yield name, [file for file in files if file.relative_to(path).parts[0] == name]


def exam_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of all texts of an exam file, whatever its layout; tables need no header."""
    name = inner_name(path)
    if name.endswith((".csv", ".tsv")):
        with readable(path), open_text(path) as stream:
            for number, cells in enumerate(
                csv.reader(stream, delimiter="\t" if name.endswith(".tsv") else ","), 1
            ):
                yield from ((f"{path}:{number}", cell) for cell in cells)
        return
    if name.endswith(".json"):
        with readable(path), open_text(path) as stream:
            try:
                whole = json.load(stream)
            except json.JSONDecodeError:
                whole = None  # JSON lines under another name
        if whole is not None:
            rows = whole if isinstance(whole, list) else [whole]
            for number, row in enumerate(rows, 1):
                yield from ((f"{path}:{number}", text) for text in _texts(row))
            return
    for place, row, _ in read_rows(path, lines=name.endswith(".txt")):
        if isinstance(row, BadRecord):
            raise UserError(f"{row}; it may hold questions that would not be looked for")
        yield from ((place, text) for text in _texts(row))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
