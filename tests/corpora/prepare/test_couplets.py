"""Couplets against a plain reading of both layouts, and the ways in which the predecessor went wrong."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from espalier.corpora.made import DEV, TRAIN, CorpusRecord, Division, Omission
from espalier.corpora.prepare.couplets import couplets
from espalier.data.read.rows import parse_row
from espalier.errors import UserError
from tests import processes

PAIRS = [
    ("风弦未拨心先乱", "夜幕已沉梦更闲"),
    ("花梦粘于春袖口", "莺声溅落柳枝头"),
    ("天增岁月人增寿", "春满乾坤福满门"),
]
SHORT = [
    ("春风", "秋月"),
    ("山高", "水长"),
    ("海阔", "天空"),
    ("日出东方", "月落西山"),
    ("书山有路", "学海无涯"),
]


ALL = Division(dev=0)


def single(folder: Path, pairs: list[tuple[str, str]], between: str = " ") -> Path:
    path = folder / "couplets.txt"
    path.write_text("".join(f"{a}{between}{b}\n" for a, b in pairs), encoding="utf-8")
    return path


def made(where: Path, division: Division = ALL) -> list[CorpusRecord]:
    return [thing for thing in couplets(where, division) if isinstance(thing, CorpusRecord)]


def test_both_layouts_say_the_same(tmp_path: Path) -> None:
    pairs = PAIRS + SHORT
    two = tmp_path / "two"
    two.mkdir()
    for name, side in (("in.txt", 0), ("out.txt", 1)):
        (two / name).write_text("".join(" ".join(pair[side]) + " \n" for pair in pairs), encoding="utf-8")
    one = single(tmp_path, pairs)
    rows = [thing.row for thing in made(one)]
    assert rows == [thing.row for thing in made(two)]
    assert [row["prompt"] for row in rows] == [f"上联：{a}" for a, _ in pairs]
    assert {row["prefix"] for row in rows} == {"下联："}


def test_every_record_has_its_own_gold_and_wrong_lines_of_the_right_lengths(
    shared: Path, by_score: Any
) -> None:
    folder = shared / "data/couplets"
    firsts, seconds = (
        [line.replace(" ", "") for line in (folder / f"test/{name}.txt").read_text("utf-8").splitlines()]
        for name in ("in", "out")
    )
    golds: dict[str, set[str]] = defaultdict(set)
    for first, second in zip(firsts, seconds, strict=True):
        golds[first].add(second)
    of_length: dict[int, set[str]] = defaultdict(set)
    for second in seconds:
        of_length[len(second)].add(second)
    found = made(folder)
    assert [thing.row["prompt"] for thing in found] == [f"上联：{first}" for first in firsts]
    for thing, first, second in zip(found, firsts, seconds, strict=True):
        answers = by_score(thing.row)
        assert answers[1] == [second]
        same = of_length[len(second)] - golds[first]
        assert len(answers.get(0, [])) == min(2, len(same))
        assert set(answers.get(0, [])) <= same
        assert len(answers[-1]) == 2
        assert all(len(wrong) != len(second) and wrong in of_length[len(wrong)] for wrong in answers[-1])
        scores = [answer["score"] for answer in thing.row["answers"]]
        assert scores == sorted(scores, reverse=True)
        assert parse_row(thing.row, thing.source, "ranking").kind == "ranking"


def test_no_answers_of_an_earlier_couplet_stay(tmp_path: Path) -> None:
    """The predecessor extended one list for all couplets; so a third record had the first one's answers."""
    for thing in made(single(tmp_path, PAIRS + SHORT)):
        assert sum(answer["score"] == 1 for answer in thing.row["answers"]) == 1
        assert len(thing.row["answers"]) <= 5


def test_dev_shares_no_line_with_train(shared: Path) -> None:
    division = Division(seed=1, dev=0.2)
    lines: dict[str, set[str]] = {TRAIN: set(), DEV: set()}
    prompts: dict[str, set[str]] = {TRAIN: set(), DEV: set()}
    numbers = dict.fromkeys(lines, 0)
    for thing in made(shared / "data/couplets", division):
        part = division.part(thing.key)
        numbers[part] += 1
        prompts[part].add(thing.row["prompt"])
        lines[part] |= {answer["answer"] for answer in thing.row["answers"]}
    assert 500 < numbers[DEV] < 900
    assert not prompts[TRAIN] & prompts[DEV]
    assert not lines[TRAIN] & lines[DEV]


def test_what_is_no_couplet_is_said(tmp_path: Path) -> None:
    path = tmp_path / "couplets.txt"
    path.write_text("春风 秋月\n春风秋月\n\n山高 水长\n一二三 四五\n", encoding="utf-8")
    without = [thing for thing in couplets(path, Division(dev=0)) if isinstance(thing, Omission)]
    assert [(thing.source.rsplit(":", 1)[1], thing.cause) for thing in without] == [
        ("2", "half a couplet"),
        ("3", "no couplet"),
        ("5", "half a couplet"),
    ]


def test_a_second_line_of_dev_is_taken_out_of_train(tmp_path: Path) -> None:
    division = Division(dev=0.5)
    firsts = [f"春风{i:02d}" for i in range(20)]
    found = list(couplets(single(tmp_path, [(first, "秋月如霜") for first in firsts]), division))
    assert {division.part(thing.key) for thing in found if isinstance(thing, CorpusRecord)} == {DEV}
    causes = [thing.cause for thing in found if isinstance(thing, Omission)]
    assert causes == ["its second line stands in dev too"] * sum(division.part(f) == TRAIN for f in firsts)
    assert 0 < len(causes) < 20


def test_files_of_different_lengths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("春 风\n山 高\n", encoding="utf-8")
    (tmp_path / "out.txt").write_text("秋 月\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"in\.txt:2: out\.txt ends before this line"):
        list(couplets(tmp_path, Division()))
    (tmp_path / "out.txt").write_text("秋 月\n水 长\n天 空\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"out\.txt:3: in\.txt ends before this line"):
        list(couplets(tmp_path, Division()))
    with pytest.raises(UserError, match=r"no couplets; wanted a folder with in\.txt"):
        list(couplets(tmp_path / "nothing", Division()))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    path = single(tmp_path, PAIRS + SHORT)
    code = (
        "import sys, json; from pathlib import Path\n"
        "from espalier.corpora.prepare.couplets import couplets\n"
        "from espalier.corpora.made import Division\n"
        "print(hash('x'))\n"
        "print(json.dumps([thing.row for thing in couplets(Path(sys.argv[1]), Division(1))]))"
    )
    done = processes.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True)
    hashed, rows = map(json.loads, done.stdout.splitlines())
    assert hashed != hash("x"), "Python orders a set otherwise there"
    assert rows == [thing.row for thing in couplets(path, Division(1))] and len(rows) == 8
    assert rows != [thing.row for thing in couplets(path, Division(2))]


def test_work_does_not_grow_with_the_corpus(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The predecessor built a set of all lines of a length for every couplet."""
    from espalier.corpora.prepare.shelf import Shelf

    looked_at: list[int] = []
    plain = Shelf._at
    monkeypatch.setattr(
        Shelf, "_at", lambda self, position: looked_at.append(position) or plain(self, position)
    )
    number = len(made(shared / "data/couplets"))
    assert len(looked_at) < 4.5 * number


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    peaks = []
    for number in (1_000, 8_000):
        path = tmp_path / "couplets.txt"
        with path.open("w", encoding="utf-8") as stream:
            for i in range(number):
                stream.write(f"春风{i:06d} 秋月{i:06d}\n")
        tracemalloc.start()
        count = sum(1 for _ in couplets(path, Division()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == number
    assert peaks[1] < 1.3 * peaks[0] + 100_000
