"""Couplets: a first line is the prompt, its own second line scores 1, others of the same length 0, of another -1.

Two layouts: `in.txt` and `out.txt`, line by line, characters between spaces (couplet-dataset); or one file with
both halves on a line and one separating character in the middle. Wrong lines are drawn from the same part, so no
line of dev is ever seen in train.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from espalier.corpora.made import DEV, TRAIN, CorpusRecord, Division, Omission, Outcomes, one_line, ranking
from espalier.corpora.prepare.shelf import Shelf
from espalier.data.read.lines import read_lines
from espalier.errors import UserError

WRONG = 2
"""Wrong lines of each kind."""


def couplets(where: Path, division: Division) -> Outcomes:
    """Raises `UserError` where neither layout is found, and where `in.txt` and `out.txt` differ in length."""
    with Shelf() as shelf:
        for place, first, second in _pairs(where):
            if not first or not second:
                yield Omission(place, "no couplet" if not first and not second else "half a couplet", first)
            elif len(first) != len(second):
                yield Omission(place, "halves of different lengths", f"{first} / {second}")
            else:
                shelf.add((division.part(first), f"{len(second):05d}"), first, second, place)
        for place, second in shelf.take_out(TRAIN, DEV):
            yield Omission(place, "its second line stands in dev too", second)
        shelf.arrange()
        for (part, length), first, second, place in shelf.items():
            chance = division.chance("couplets", first, second)
            own, same = shelf.texts(first), shelf.span(part, length)
            equal = shelf.draw(chance, [same], avoid=own, number=WRONG)
            other = shelf.draw(chance, [shelf.span(part)], [same], avoid=own, number=WRONG)
            answers = [(second, 1.0), *((text, 0.0) for text in equal), *((text, -1.0) for text in other)]
            row = ranking(f"上联：{first}", "下联：", answers)
            yield CorpusRecord(row, key=first, source=place, group=f"{len(first)} characters")


def _pairs(where: Path) -> Iterator[tuple[str, str, str]]:
    halves = list(_halves(where)) if where.is_dir() else []
    if halves:
        for first, second in halves:
            yield from _parallel(first, second)
        return
    single = where / "couplets.txt" if where.is_dir() else where
    if not single.is_file():
        raise UserError(
            f"{where}: no couplets; wanted a folder with in.txt and out.txt (or fixed_couplets_in.txt and "
            "fixed_couplets_out.txt) or with couplets.txt, or such a file itself"
        )
    if single.name == "in.txt":
        yield from _parallel(single, single.with_name("out.txt"))
        return
    for place, line in read_lines(single):
        line = one_line(line).strip()
        middle = len(line) // 2
        separated = len(line) % 2 == 1 and not line[middle].isalnum()
        yield place, *((line[:middle], line[middle + 1 :]) if separated else ("", line))


def _halves(where: Path) -> Iterator[tuple[Path, Path]]:
    for first in sorted(where.rglob("*in.txt")):
        second = first.with_name(first.name.removesuffix("in.txt") + "out.txt")
        if second.is_file():
            yield first, second


def _parallel(first_file: Path, second_file: Path) -> Iterator[tuple[str, str, str]]:
    if not second_file.is_file():
        raise UserError(f"{second_file}: no such file; the second lines of {first_file.name} belong there")
    seconds = read_lines(second_file)
    for place, first in read_lines(first_file):
        try:
            _, second = next(seconds)
        except StopIteration:
            raise UserError(
                f"{place}: {second_file.name} ends before this line; fetch both files anew"
            ) from None
        yield place, _close(first), _close(second)
    extra = next(seconds, None)
    if extra is not None:
        raise UserError(f"{extra[0]}: {first_file.name} ends before this line; fetch both files anew")


def _close(line: str) -> str:
    return "".join(line.split())
