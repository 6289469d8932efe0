"""A record without an end is one bad record (or one message), and no more of it is held than the bound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from espalier.data.read import files, json_files, lines
from espalier.data.records import BadRecord
from espalier.errors import UserError

GOOD = {"prompt": "1 + 1 =", "completion": "2"}
LONG = {"prompt": "x" * 5000, "completion": "2"}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lines, files, json_files):
        monkeypatch.setattr(module, "LONGEST", 1000)
    monkeypatch.setattr(json_files, "_CHUNK", 256)
    monkeypatch.setattr(lines, "_PIECE", 100)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_line_is_passed_over_and_counted(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in (GOOD, LONG, GOOD)), "utf-8")
    (_, first, _), (place, bad, _), (last_place, last, _) = files.read_rows(path)
    assert first == last == GOOD and (place, last_place) == (f"{path}:2", f"{path}:3")
    assert isinstance(bad, BadRecord) and bad.cause == "too long" and "a line of its own" in bad.reason
    path.write_text(json.dumps(LONG), "utf-8")
    ((place, bad, _),) = files.read_rows(path)
    assert place == f"{path}:1" and isinstance(bad, BadRecord) and bad.cause == "too long"


def test_blocks_of_lines_know_it_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (GOOD, LONG, GOOD)), "utf-8")
    rows = [row for block in lines.line_blocks(path) for _, row, _ in block.placed()]
    assert rows[::2] == [GOOD, GOOD] and isinstance(rows[1], BadRecord) and rows[1].cause == "too long"


def test_an_array_ends_there_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, LONG, GOOD]), "utf-8")
    (_, first, _), (_, bad, _) = files.read_rows(path)
    assert (
        first == GOOD and isinstance(bad, BadRecord) and bad.hides and "a record of more than" in bad.reason
    )


def test_csv_and_lines_of_text(tmp_path: Path) -> None:
    table, texts = tmp_path / "a.csv", tmp_path / "a.txt"
    table.write_text(f"prompt,completion\n1,2\n{'x' * 5000},2\n3,4\n", "utf-8")
    with pytest.raises(UserError, match=rf"{table}:3: a record of more than"):
        list(files.read_rows(table))
    texts.write_text(f"one\n{'x' * 5000}\nthree\n", "utf-8")
    found = [row for _, row, _ in files.read_rows(texts, lines=True)]
    assert found[0] == {"text": "one"} and found[2] == {"text": "three"}
    assert isinstance(found[1], BadRecord) and found[1].cause == "too long"
