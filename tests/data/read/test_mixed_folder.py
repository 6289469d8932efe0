"""A folder of every kind of file at once, and what one broken file among them says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from espalier.data.read.sources import DatasetSpec
from espalier.errors import UserError
from tests.data.listed import load_records


def folder(place: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (place / "deep").mkdir()
    (place / "a.jsonl").write_text(json.dumps(chat) + "\n", encoding="utf-8")
    (place / "deep/b.json").write_text(json.dumps([{"instruction": "q", "output": "b"}]), encoding="utf-16")
    (place / "c.csv").write_text('prompt,completion\n"q\n2","c, d"\n', encoding="utf-8-sig")
    (place / "d.tsv").write_text("question\tanswer\nq\td\n", encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([chat]), place / "e.parquet")
    with gzip.open(place / "f.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(
            json.dumps({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "f"}]})
        )
    (place / "README.md").write_text("no data", encoding="utf-8")
    return place


def test_every_file_is_read_by_its_own_kind(tmp_path: Path) -> None:
    loaded = load_records([DatasetSpec(str(folder(tmp_path)))], "chat")
    assert [record.messages[-1].content for record in loaded.records] == ["a", "c, d", "d", "b", "a", "f"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "x.json",
            b'[{"instruction": "q", "output": "a"},\n {"instruction": "q", "out',
            r"x\.json:2: broken JSON .*cut off",
        ),
        ("x.jsonl", b'{"instruction": "q"\n', r"x\.jsonl:1: broken JSON at column \d+ .*repair the line"),
        (
            "x.csv",
            b"prompt,completion\na,b,c\n",
            r"x\.csv:2: 3 cells.*put cells that contain commas in quotes",
        ),
        (
            "x.jsonl",
            '{"prompt": "你好", "completion": "好"}'.encode("gbk"),
            r"x\.jsonl:1: byte .*GB18030.*iconv",
        ),
        ("x.jsonl", b"", r"x\.jsonl: the file is empty.*remove it"),
        (
            "x.jsonl",
            b'{"question_text": "q", "reply": "a"}\n',
            r"x\.jsonl:1: found the columns .*rename yours",
        ),
        ("x.parquet", b"PAR1 and no more", r"x\.parquet: not a whole Parquet file"),
    ],
)
def test_one_broken_file_is_named_with_line_and_cure(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (folder(tmp_path) / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_records([DatasetSpec(str(tmp_path))], "chat")
