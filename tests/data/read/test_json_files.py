"""Reading JSON piece by piece against json.loads of the whole file, and what a break says."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from espalier.data.read import json_files
from espalier.data.read.json_files import json_file
from espalier.data.records import BadRecord


def read(text: str) -> list[Any]:
    return list(json_file(Path("a.json"), io.StringIO(text)))


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 16])
@pytest.mark.parametrize("indent", [None, 1, 4])
def test_any_chunk_size_reads_the_same(
    monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_files, "_CHUNK", chunk)
    rng = random.Random(0)
    words = ["春眠不觉晓", "a]b", 'say "]" or ",{"', "line\nbreak", "\\", "", "😀", "x" * 300]
    rows = [
        {rng.choice("abc"): [rng.choice(words), rng.random(), None, {"y": -1e-5}] for _ in range(3)}
        for _ in range(40)
    ]
    text = json.dumps(rows, ensure_ascii=bool(rng.random() < 0.5), indent=indent)
    found = read(text)
    assert [row for _, row, _ in found] == rows
    lines = text.split("\n")
    for place, row, _ in found:
        number = int(place.rsplit(":", 1)[1])
        assert "{" in lines[number - 1], row
    assert [row for _, row, _ in read("\n".join(json.dumps(row) for row in rows))] == rows
    assert read(json.dumps(rows[0], indent=indent))[0][1] == rows[0]


@pytest.mark.parametrize("chunk", [1, 16, 1 << 16])
def test_a_cut_array_keeps_all_whole_records(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_files, "_CHUNK", chunk)
    rows = [{"text": f"第{number}条"} for number in range(5)]
    text = json.dumps(rows, ensure_ascii=False, indent=1)
    for cut in range(2, len(text) - 1):
        *whole, (place, bad, _) = read(text[:cut])
        assert [row for _, row, _ in whole] == rows[: len(whole)]
        assert isinstance(bad, BadRecord)
        broken = text[:cut].count("\n", 0, text[:cut].rstrip().__len__()) + 1
        assert abs(int(place.rsplit(":", 1)[1]) - broken) <= 1
        assert "nothing behind this place was read" in bad.reason


def test_columns_are_those_of_the_file() -> None:
    [*_, (place, bad, _)] = read('[{"a": 1}, {"b": 2}, {"c" 3}]')
    assert place == "a.json:1" and isinstance(bad, BadRecord) and "at column 27 " in bad.reason


@pytest.mark.slow
def test_memory_is_one_record(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("w", encoding="utf-8") as stream:
        stream.write("[\n" + ",\n".join(json.dumps({"text": "x" * 1000}) for _ in range(20_000)) + "\n]")
    tracemalloc.start()
    with path.open(encoding="utf-8", newline="\n") as stream:
        assert sum(1 for _ in json_file(path, stream)) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
