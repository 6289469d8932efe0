"""Files that are broken or odd: nothing of them is lost without a word, and the word is one with file, line and cure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.data.read.files import read_rows
from espalier.data.read.rows import parse_row
from espalier.data.read.sources import DatasetSpec, LoadReport
from espalier.data.records import BadRecord
from espalier.data.store.blocks import Job
from espalier.data.store.open import ReadSettings, opened
from espalier.errors import UserError


def found(path: Path) -> tuple[list[Any], list[BadRecord]]:
    rows = [row for _, row, _ in read_rows(path)]
    return [r for r in rows if not isinstance(r, BadRecord)], [r for r in rows if isinstance(r, BadRecord)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_half_a_character_is_one_bad_record_and_no_more(tmp_path: Path, name: str) -> None:
    path, rejected = tmp_path / name, tmp_path / "rejected.jsonl"
    good = {"prompt": "q", "completion": "a"}
    rows = [r'{"prompt": "坏\ud83d字", "completion": "a"}', json.dumps(good), r'{"a\udc00b": 1}']
    path.write_text("\n".join(rows) if name == "a.jsonl" else f"[{','.join(rows)}]", "utf-8")

    def read(**how: Any) -> LoadReport:
        return opened([DatasetSpec(str(path))], Job("chat"), ReadSettings(tmp_path / "stores", **how))[2]

    tools = parse_row({**good, "tools": [{"name": "\ud83d"}]}, "a.jsonl:1", "chat")
    assert isinstance(tools, BadRecord) and "column 'tools' holds half a character" in tools.reason
    with pytest.raises(UserError, match=r"column 'prompt' holds half a character (?s:.*)1 good"):
        read()
    loaded = read(skip_bad=True, rejected_path=rejected)
    assert len(loaded.records) == 1 and sum(loaded.left_out.values()) == 2
    kept = [json.loads(line)["row"] for line in rejected.read_text("utf-8").splitlines()]
    assert kept == [json.loads(rows[0]), json.loads(rows[2])], "what was rejected can be repaired from there"


def test_an_unclosed_quote_swallows_nothing_silently(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = ["prompt,completion", *(f"问{number},答{number}" for number in range(2, 61))]
    path.write_text("\n".join(lines), "utf-8")
    assert len(found(path)[0]) == 59
    path.write_text("\n".join([*lines[:2], '问3,"答3', *lines[3:]]), "utf-8")
    good, (bad,) = found(path)
    assert len(good) == 1 and bad.source == f"{path}:3" and bad.hides
    assert "not closed rightly up to line 60" in bad.reason and "57 lines behind this one" in bad.reason
    path.write_text("\n".join([*lines[:2], '问3,"答3', *lines[3:9], '"问10",答', *lines[10:]]), "utf-8")
    good, (bad,) = found(path)
    assert len(good) == 1 + 50 and bad.hides and "up to line 10" in bad.reason
    path.write_text('prompt,completion\n"他说"好",a\nb,c\n', "utf-8")
    good, (bad,) = found(path)
    assert good == [{"prompt": "b", "completion": "c"}] and not bad.hides and "is doubled" in bad.reason


def test_a_name_that_stands_twice_takes_no_column_away(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion,completion\nq,a,b\n", "utf-8")
    with pytest.raises(UserError, match=r"a\.csv:1: 2 columns are called 'completion'"):
        found(path)
    path.write_text(",prompt,,\n0,q,,x\n", "utf-8")
    assert found(path) == ([{"column 1": "0", "prompt": "q", "column 3": "", "column 4": "x"}], [])
    twice, good = '{"a": 1, "b": {"c": 1, "c": 2}}', '{"a": 2}'
    for name, text in (("a.jsonl", f"{twice}\n{good}\n"), ("a.json", f"[\n{twice},\n{good}\n]")):
        path = tmp_path / name
        path.write_text(text, "utf-8")
        rows, (bad,) = found(path)
        assert rows == [{"a": 2}] and "the name 'c' stands twice" in bad.reason and not bad.hides


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_the_sign_between_columns_is_found(tmp_path: Path, sign: str, name: str) -> None:
    path = tmp_path / name
    others = "".join(other for other in ";,\t|" if other != sign)
    path.write_text(f'prompt{sign}completion\n问{others}{sign}"a{sign}b"\n', "utf-8")
    assert found(path) == ([{"prompt": f"问{others}", "completion": f"a{sign}b"}], [])
    path.write_text("text\na b\n", "utf-8")
    assert found(path) == ([{"text": "a b"}], [])


def test_a_json_file_of_no_json_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("// made by hand\n" + json.dumps([{"text": "a"}] * 20, indent=1), "utf-8")
    rows, (bad,) = found(path)
    assert not rows and bad.hides and bad.source == f"{path}:1" and "JSON has no comments" in bad.reason
    path = tmp_path / "a.jsonl"
    path.write_text('[\n{"text": "a"}\n]', "utf-8")
    assert "its name must end with .json" in found(path)[1][0].reason
    path.write_text('{"text": "a"}{"text": "b"}', "utf-8")
    assert "put each record on a line of its own" in found(path)[1][0].reason
    path.write_text(f'{{"text": {"9" * 5000}}}\n', "utf-8")
    assert "broken JSON" in found(path)[1][0].reason
    path = tmp_path / "a.json"
    for text in (f'[{{"text": {"9" * 5000}}}]', "[" * 100_000, '{"a": ' * 100_000):
        path.write_text(text, "utf-8")
        assert "broken JSON" in found(path)[1][0].reason


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text("a，\",\n'“", max_size=6), st.text('b,"\r\n', max_size=6)), max_size=6),
    st.data(),
)
def test_every_line_of_a_csv_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]], data: st.DataObject
) -> None:
    """What Python's own writer writes comes back; with one quote more or less, each line is in a row or in a reason."""
    import csv
    import io

    stream = io.StringIO()
    csv.writer(stream).writerows([("x", "y"), *cells])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_text(stream.getvalue(), "utf-8", newline="")
    assert found(path) == ([{"x": x, "y": y} for x, y in cells], [])
    text = stream.getvalue()
    at = data.draw(st.integers(5, len(text)))
    path.write_text(text[:at] + '"' + text[at:], "utf-8", newline="")
    rows, bad = found(path)
    assert all(set(row) == {"x", "y"} for row in rows)
    assert bad or sum(len(a) + len(b) for row in rows for a, b in [row.values()]) >= sum(
        len(x) + len(y) for x, y in cells
    )
