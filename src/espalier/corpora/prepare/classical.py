"""Classical-Modern: a sentence to be put into modern (or classical) Chinese; its own translation scores 1.

Two translations of the same book score 0, two of other books -1, drawn from the same part. Which way a pair goes
is chance. Two layouts: `双语数据/BOOK/…/bitext.txt` and the older `bitext/BOOK` (or `Classical-Modern/bitext/BOOK`);
blocks of `古文：…` and `现代文：…`, a blank line behind each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from espalier.corpora.made import (
    DEV,
    TRAIN,
    CorpusRecord,
    Division,
    Omission,
    Outcomes,
    one_line,
    ranking,
    skeleton,
)
from espalier.corpora.prepare.shelf import Shelf
from espalier.data.read.lines import read_lines
from espalier.errors import UserError

WRONG = 2
OLD, NEW = "古文", "现代文"


def classical(where: Path, division: Division) -> Outcomes:
    """Raises `UserError` where neither layout is found.

    The part of a pair follows from its classical side, so the translations of one sentence stay together.
    """
    with Shelf() as shelf:
        for path, book in _files(where):
            for entry in _pairs(path):
                if isinstance(entry, Omission):
                    yield entry
                    continue
                place, old, new = entry
                part = division.part(old)
                # The way follows from the classical sentence alone: its other translations go the same way.
                tag, asked, answer = (OLD, old, new)
                if division.chance("way", skeleton(old)).random() < 0.5:
                    tag, asked, answer = (NEW, new, old)
                shelf.add((part, tag, book), asked, answer, place)
        for place, text in shelf.take_out(TRAIN, DEV, keys=True):
            yield Omission(place, "its text stands in dev too", text)
        shelf.arrange()
        for (part, tag, book), asked, answer, place in shelf.items():
            chance = division.chance("classical", tag, asked, answer)
            right, same = shelf.texts(asked), shelf.span(part, tag, book)
            near = shelf.draw(chance, [same], avoid=right, number=WRONG)
            far = shelf.draw(chance, [shelf.span(part, tag)], [same], avoid={*right, *near}, number=WRONG)
            answers = [(answer, 1.0), *((text, 0.0) for text in near), *((text, -1.0) for text in far)]
            row = ranking(f"{tag}：{asked}", f"{NEW if tag == OLD else OLD}：", answers)
            yield CorpusRecord(row, key=asked if tag == OLD else answer, source=place, group=book)


def _files(where: Path) -> list[tuple[Path, str]]:
    """(file, book) in the order of the names."""
    files = []
    if where.is_dir():
        for path in sorted(where.rglob("bitext.txt")):
            below = path.relative_to(where).parts
            place = below.index("双语数据") + 1 if "双语数据" in below else 0
            files.append((path, below[place] if place < len(below) - 1 else path.parent.name))
        flat = [folder for folder in (where, *sorted(where.rglob("bitext"))) if folder.name == "bitext"]
        for folder in flat:
            if folder.is_dir():
                files += [(path, path.stem) for path in sorted(folder.iterdir()) if path.is_file()]
    if not files:
        raise UserError(
            f"{where}: no bilingual text; wanted 双语数据/BOOK/CHAPTER/bitext.txt or the older bitext/BOOK below it"
        )
    return files


def _pairs(path: Path) -> Iterator[tuple[str, str, str] | Omission]:
    block: dict[str, str] = {}
    start = f"{path}:1"
    for place, line in read_lines(path):
        text = one_line(line)
        if not text.strip():
            yield from _closed(block, start)
            block = {}
            continue
        tag, colon, body = text.partition("：")
        if tag not in (OLD, NEW) or not colon:
            yield Omission(place, "a line without 古文： or 现代文：", text)
            continue
        if tag in block:  # the blank line between two blocks is missing
            yield from _closed(block, start)
            block = {}
        if not block:
            start = place
        block[tag] = body
    yield from _closed(block, start)


def _closed(block: dict[str, str], place: str) -> Iterator[tuple[str, str, str] | Omission]:
    if not block:
        return
    old, new = block.get(OLD, "").strip(), block.get(NEW, "").strip()
    if old and new:
        yield place, old, new
    else:
        yield Omission(place, "half a pair", old or new)
