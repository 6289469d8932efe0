"""Classical and modern Chinese against a plain reading of both layouts."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from espalier.corpora.made import DEV, TRAIN, CorpusRecord, Division, Omission
from espalier.corpora.prepare.classical import classical
from espalier.errors import UserError

ALL = Division(dev=0)


def plain_reading(files: list[Path]) -> list[tuple[str, str]]:
    pairs = []
    for path in files:
        for block in path.read_text("utf-8").replace("\r", "").split("\n\n"):
            lines = [line for line in block.split("\n") if line]
            if len(lines) == 2:
                pairs.append(
                    (lines[0].removeprefix("古文：").strip(), lines[1].removeprefix("现代文：").strip())
                )
    return [(old, new) for old, new in pairs if old and new]


def of(row: dict[str, Any]) -> tuple[str, str]:
    """(classical, modern) of a record."""
    asked, answer = row["prompt"].split("：", 1)[1], row["answers"][0]["answer"]
    return (asked, answer) if row["prompt"].startswith("古文") else (answer, asked)


@pytest.mark.parametrize("layout", ["双语数据", "v1_flat"])
def test_the_real_layouts(shared: Path, layout: str, by_score: Any) -> None:
    folder = shared / "data/classical_modern" / layout
    files = sorted(folder.rglob("bitext.txt")) or sorted((folder / "bitext").iterdir())
    wanted = plain_reading(files)
    found = [thing for thing in classical(folder, ALL) if isinstance(thing, CorpusRecord)]
    assert len(wanted) > 1300
    assert [of(thing.row) for thing in found] == wanted
    ways = Counter(thing.row["prompt"].split("：")[0] for thing in found)
    assert all(0.4 < count / len(found) < 0.6 for count in ways.values()) and len(ways) == 2

    books: dict[str, set[str]] = defaultdict(set)  # text -> its books
    for path in files:
        book = path.relative_to(folder).parts[0 if layout == "双语数据" else 1]
        for pair in plain_reading([path]):
            for text in pair:
                books[text].add(book)
    golds: dict[str, set[str]] = defaultdict(set)
    for old, new in wanted:
        golds[old].add(new)
        golds[new].add(old)
    for thing in found:
        old, new = of(thing.row)
        asked, answers = (old if thing.row["prompt"].startswith("古文") else new), by_score(thing.row)
        assert thing.row["prefix"] == ("现代文：" if asked is old else "古文：")
        assert len(answers[0]) == 2 and all(thing.group in books[text] for text in answers[0])
        assert len(answers[-1]) == 2 and all(books[text] - {thing.group} for text in answers[-1])
        assert not golds[asked] & {*answers[0], *answers[-1]}


def test_layouts_and_parents_of_them_are_found(tmp_path: Path) -> None:
    block = "古文：甲{0}\n现代文：乙{0}\n\n"
    for book in ("论语", "孟子"):
        for path in (
            tmp_path / "new/双语数据" / book / "一/bitext.txt",
            tmp_path / "old/Classical-Modern/bitext" / book,
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.format(book), encoding="utf-8")
    rows = [[thing.row for thing in classical(tmp_path / place, ALL) if isinstance(thing, CorpusRecord)]
            for place in ("new", "new/双语数据", "old", "old/Classical-Modern", "old/Classical-Modern/bitext")]  # fmt: skip
    assert all(found == rows[0] for found in rows) and len(rows[0]) == 2


def test_broken_blocks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bitext/书"
    path.parent.mkdir()
    path.write_text(
        "古文：一\n现代文：二\n古文：三\n现代文：四\n\n古文：五\n\n随便\n现代文：\n", encoding="utf-8"
    )
    found = list(classical(tmp_path, ALL))
    assert [of(thing.row) for thing in found if isinstance(thing, CorpusRecord)] == [
        ("一", "二"),
        ("三", "四"),
    ]
    without = [(t.source.rsplit(":", 1)[1], t.cause) for t in found if isinstance(t, Omission)]
    assert without == [("6", "half a pair"), ("8", "a line without 古文： or 现代文："), ("9", "half a pair")]


def test_dev_shares_no_text_with_train(shared: Path) -> None:
    division = Division(seed=5, dev=0.2)
    texts: dict[str, set[str]] = {TRAIN: set(), DEV: set()}
    count: Counter[str] = Counter()
    for thing in classical(shared / "data/classical_modern", division):
        if isinstance(thing, CorpusRecord):
            part = division.part(thing.key)
            count[part] += 1
            texts[part] |= {
                thing.row["prompt"].split("：", 1)[1],
                *(a["answer"] for a in thing.row["answers"]),
            }
    assert not texts[TRAIN] & texts[DEV]
    assert 0.15 < count[DEV] / count.total() < 0.25


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no bilingual text; wanted 双语数据/BOOK/CHAPTER"):
        list(classical(tmp_path, ALL))
