"""Files as they are found: encodings, breaks, places. Each complaint names the file, the line and the cure."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from espalier.data.read.files import read_rows
from espalier.data.records import BadRecord
from espalier.errors import UserError

ROWS = [{"text": "春眠不觉晓"}, {"text": "two\nlines\u2028one row"}, {"text": "third"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"


def rows(path: Path, **options: bool) -> list:
    return [row for _, row, _ in read_rows(path, **options)]


def places(path: Path) -> list[str]:
    return [place.removeprefix(f"{path.parent}/") for place, _, _ in read_rows(path)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_marks_and_utf16_are_read(tmp_path: Path, encoding: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(LINES.encode(encoding))
    assert rows(path) == ROWS
    assert places(path) == [f"{name}:1", f"{name}:2", f"{name}:3"]


def test_windows_line_ends_and_blank_lines_keep_the_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\r\n\r\n{"text": "b"}')
    assert rows(path) == [{"text": "a"}, {"text": "b"}]
    assert places(path) == ["a.jsonl:1", "a.jsonl:3"]


def test_an_array_gives_the_line_where_each_record_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False), encoding="utf-8")
    assert rows(path) == ROWS
    assert places(path) == ["a.json:2", "a.json:5", "a.json:8"]
    path.write_text("[]", encoding="utf-8")
    assert rows(path) == []


def test_gzip_reads_like_the_plain_file(tmp_path: Path) -> None:
    for name, text in (("a.jsonl.gz", LINES), ("a.json.gz", json.dumps(ROWS))):
        with gzip.open(tmp_path / name, "wt", encoding="utf-8") as stream:
            stream.write(text)
        assert rows(tmp_path / name) == ROWS
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes((tmp_path / "a.jsonl.gz").read_bytes()[:-12])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz: cannot be read"):
        rows(cut)


def test_csv_counts_lines_not_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["prompt", "completion"], ["a\nb", "x,y"], ["c", "z"]])
        stream.write("only one cell\r\n")
    found = list(read_rows(path))
    assert [row for _, row, _ in found[:2]] == [
        {"prompt": "a\nb", "completion": "x,y"},
        {"prompt": "c", "completion": "z"},
    ]
    assert [place.rsplit(":", 1)[1] for place, _, _ in found] == ["2", "4", "5"]
    assert isinstance(found[2][1], BadRecord) and "1 cells" in found[2][1].reason
    tsv = tmp_path / "a.tsv"
    tsv.write_text("prompt\tcompletion\na\tb\n", encoding="utf-8")
    assert rows(tsv) == [{"prompt": "a", "completion": "b"}]


def test_parquet_and_text(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    data = [
        {"messages": [{"role": "user", "content": "你好"}]},
        {"messages": [{"role": "user", "content": "x"}]},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(data), path)
    assert rows(path) == data
    assert places(path) == ["a.parquet:1", "a.parquet:2"]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="not a whole Parquet file"):
        rows(path)
    text = tmp_path / "a.txt"
    text.write_text("one\r\n\n二\n", encoding="utf-8", newline="")
    assert rows(text) == [{"text": "one\r\n\n二\n"}]
    assert rows(text, lines=True) == [{"text": "one"}, {"text": "二"}]


def test_broken_json_in_line_7(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": str(number)}) for number in range(1, 11)]
    lines[6] = '{"text": "7'
    lines[8] = "[1, 2]"
    path.write_text("\n".join(lines), encoding="utf-8")
    found = list(read_rows(path))
    assert len(found) == 10
    place, bad, raw = found[6]
    assert place == f"{path}:7" and raw == lines[6]
    assert isinstance(bad, BadRecord) and str(bad).startswith(f"{path}:7: broken JSON at column 10")
    assert isinstance(found[8][1], BadRecord) and "named columns" in found[8][1].reason


@pytest.mark.parametrize(
    ("text", "good", "line", "words"),
    [
        ('[\n{"text": "a"},\n{"text": "b', 1, 3, "cut off"),
        ('[\n{"text": "a"},\n', 1, 3, "not closed"),
        ('[\n{"text": "a"}\n', 0, 3, "ends without ]"),
        ('[\n{"text": "a"}\n{"text": "b"}]', 0, 3, "no comma"),
        ('[{"text": "a"}]\nrest', 1, 1, "behind the array's end"),
    ],
)
def test_a_broken_array_keeps_what_stands_before_the_break(
    tmp_path: Path, text: str, good: int, line: int, words: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    *before, (place, bad, _) = list(read_rows(path))
    assert len(before) == good
    assert place == f"{path}:{line}"
    assert isinstance(bad, BadRecord) and words in bad.reason


def test_gbk_is_refused_with_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "a"}\n{"text": "春眠不觉晓"}\n'.encode("gbk"))
    with pytest.raises(UserError) as caught:
        rows(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: byte 24 (0xb4) is not UTF-8")
    assert "iconv -f GB18030 -t UTF-8 a.jsonl" in message


def test_empty_unknown_and_headless_files(tmp_path: Path) -> None:
    for name, content, words in (
        ("a.jsonl", "", "is empty"),
        ("a.json", " \n", "white space"),
        ("a.docx", "x", "unknown kind of file"),
        ("a.csv", "\n", "no header"),
    ):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=words):
            rows(path)


def test_a_table_without_names_of_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("很好，下次再来\t一般\n不错。\t差\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"a\.tsv:1: the first line reads like a record .*put a line with the names in front"
    ):
        rows(path)


def test_an_object_of_records_by_name_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    table = {"x/1": {"problem": "1+1", "solution": "2"}, "x/2": {"problem": "2+2", "solution": "4"}}
    for indent in (None, 1):
        path.write_text(json.dumps(table, indent=indent), encoding="utf-8")
        assert rows(path) == list(table.values())
        assert places(path) == ["a.json:1", "a.json:2"]
    one = {"prompt": {"role": "user", "content": "a"}, "chosen": {"role": "assistant", "content": "b"}}
    path.write_text(json.dumps(one), encoding="utf-8")
    assert rows(path) == [one]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_marks_and_utf_16_are_read(tmp_path: Path, encoding: str, name: str) -> None:
    path = tmp_path / name
    data = [{"text": "春眠不觉晓\n处处闻啼鸟"}, {"text": "x"}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in data)
    if name == "a.json":
        text = json.dumps(data, ensure_ascii=False)
    if name == "a.csv":
        text = 'text\r\n"春眠不觉晓\n处处闻啼鸟"\r\nx\r\n'
    path.write_bytes(text.encode(encoding))
    assert rows(path) == data


def test_one_line_of_many_megabytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"text": "春" * 7_000_000}, ensure_ascii=False) + '\n{"text": "b"}\n', encoding="utf-8"
    )
    assert [len(row["text"]) for row in rows(path)] == [7_000_000, 1]
