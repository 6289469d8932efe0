"""Packed files, one by one and in folders: the same rows as the plain file, and one message where it cannot be."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from espalier.data.read.files import read_rows
from espalier.data.read.sources import DatasetSpec
from espalier.errors import UserError
from tests.data.listed import load_records

ROWS = [{"prompt": f"第{number}题", "completion": f"答{number}"} for number in range(30)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = ("prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in ROWS)).encode()


def zipped(content: bytes, name: str = "deep/数据.jsonl") -> bytes:
    kept = io.BytesIO()
    with zipfile.ZipFile(kept, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._a", b"of no use")
        archive.writestr(name, content)
    return kept.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.Codec("zstd").compress(content, asbytes=True),
    ".zip": zipped,
}


@pytest.mark.parametrize("packing", PACK)
def test_what_is_packed_reads_like_the_plain_file(tmp_path: Path, packing: str) -> None:
    for name, content in (("a.jsonl", LINES), ("b.csv", CSV), ("c.json", json.dumps(ROWS).encode("utf-16"))):
        path = tmp_path / f"{name}{packing}"
        path.write_bytes(zipped(content, name) if packing == ".zip" else PACK[packing](content))
        assert [row for _, row, _ in read_rows(path)] == ROWS, name
    records = load_records([DatasetSpec(str(tmp_path))], "chat").records
    assert [record.messages[1].content for record in records] == [row["completion"] for row in ROWS] * 3
    assert records[2].source == f"{tmp_path}/a.jsonl{packing}:3"


@pytest.mark.parametrize("packing", PACK)
def test_what_is_cut_or_called_wrongly_is_one_message(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(PACK[packing](LINES)[:-9])
    with pytest.raises(UserError, match=rf"a\.jsonl{packing}: (cannot be read|is no whole zip)"):
        list(read_rows(path))
    path.write_bytes(LINES)
    with pytest.raises(
        UserError, match=r"is not packed, although its name .* call it a\.jsonl|no whole zip archive"
    ):
        list(read_rows(path))
    plain = tmp_path / "b.jsonl"
    plain.write_bytes(PACK[packing](LINES))
    with pytest.raises(UserError, match=rf"b\.jsonl: is packed .* call it b\.jsonl\{packing}"):
        list(read_rows(plain))


def test_a_packed_file_in_gbk_is_unpacked_by_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "my data.jsonl.gz"
    path.write_bytes(gzip.compress(LINES.decode().encode("gbk")))
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    assert "`gzip -dc 'my data.jsonl.gz' | iconv -f GB18030 -t UTF-8 > 'new-my data.jsonl'`" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("b.xlsx", "save each sheet as CSV"),
        ("b.parquet.gz", "unpack it; Parquet"),
        ("b.tar.gz", "move the archive out"),
        ("b.7z", "move the archive out"),
        ("b.arrow", "as JSON lines"),
        ("b.sqlite", "as JSON lines"),
    ],
)
def test_data_of_a_kind_that_is_not_read_is_not_passed_over(tmp_path: Path, name: str, cure: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    for other in ("README.md", ".hidden.xlsx", "picture.png"):
        (tmp_path / other).write_bytes(b"x")
    assert len(load_records([DatasetSpec(str(tmp_path))], "chat").records) == len(ROWS)
    (tmp_path / name).write_bytes(b"x")
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=f"{name}: this kind of file is not read; .*{cure}"):
            load_records([DatasetSpec(str(place))], "chat")


def test_a_file_beside_its_packed_self_would_count_twice(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    with pytest.raises(UserError, match=r"a\.jsonl and .*a\.jsonl\.gz: .*count twice"):
        load_records([DatasetSpec(str(tmp_path))], "chat")


def test_an_archive_of_several_files_says_how_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.jsonl", "b.jsonl"):
            archive.writestr(name, LINES)
    with pytest.raises(
        UserError, match=r"holds 2 files \(a\.jsonl, b\.jsonl\), wanted one; unpack it .*unzip a\.zip"
    ):
        list(read_rows(path))
    path.write_bytes(zipped(LINES, "a.docx"))
    with pytest.raises(UserError, match=r"a\.zip: unknown kind of file \(it holds a\.docx\)"):
        list(read_rows(path))
