"""Exam files in other encodings: read where a mark says which, else one message with file, line and cure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from espalier.errors import UserError
from espalier.exam.tasks import EXAMS, Settings, make_task
from tests.conftest import SAMPLES

HERE = {path.name.lower(): path for path in (SAMPLES / "exams").iterdir()}
NAMES = [
    name
    for name in EXAMS
    if any(folder in HERE for folder in (name, f"{name}_fewclue", {"drcd": "cmrc2018"}.get(name, "")))
]


def written(name: str, to: Path, change: Callable[[bytes], bytes]) -> Path:
    """An exam's sample files with other bytes; DRCD's are CMRC's, whose layout it can have."""
    source = HERE.get(name) or HERE.get(f"{name}_fewclue") or HERE["cmrc2018"]
    for path in source.rglob("*.*"):
        place = to / (name if name == "drcd" else source.name) / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(change(path.read_bytes()))
    return to


def asked(name: str, folder: Path) -> list[str]:
    return [repr(item).replace(str(folder), "") for item in make_task(name, Settings(folder), shots=0).read()]


@pytest.mark.parametrize("name", NAMES)
def test_utf16_is_read_and_other_bytes_are_one_message(tmp_path: Path, name: str) -> None:
    plain = asked(name, written(name, tmp_path / "utf-8", lambda content: content))
    assert plain
    utf16 = written(name, tmp_path / "utf-16", lambda content: content.decode("utf-8-sig").encode("utf-16"))
    assert asked(name, utf16) == plain
    named = r"\.(json|jsonl|csv|txt):\d+: byte \d+ \(0x..\) is not UTF-8"
    broken = written(name, tmp_path / "broken", lambda content: content[:-3] + b"\xe4\xb8" + content[-3:])
    with pytest.raises(UserError, match=named):
        asked(name, broken)
    gbk = written(name, tmp_path / "gbk", lambda content: content.decode("utf-8-sig").encode("gb18030"))
    texts = b"".join(path.read_bytes() for path in gbk.rglob("*.*"))
    if not texts.isascii():
        with pytest.raises(UserError, match=named + r"; it reads as GBK .*iconv -f GB18030"):
            asked(name, gbk)


def test_these_are_all_layouts() -> None:
    assert {"cmrc2018", "drcd", "lcsts", "c3", "chid", "ceval", "mmlu", "gsm8k"} <= set(NAMES) and len(
        NAMES
    ) > 15


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        ('{"data": [{}]}', "'paragraphs' is missing"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', "'context' is missing"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": 1}]}]}]}', "'question' is missing"),
        ('[{"context_text": "c", "qas": [{"query_id": 1, "query_text": "q"}]}]', "'answers' is missing"),
        ('[["c"]]', "found a list, wanted an object"),
        ('[{"context_text": "c", "qas": [', "broken JSON at column 32"),
        ('{"data": 1, "data": []}', "'data' stands twice"),
    ],
)
def test_what_is_missing_of_a_reading_exam_is_named(tmp_path: Path, whole: str, said: str) -> None:
    (tmp_path / "drcd").mkdir()
    (tmp_path / "drcd/dev.json").write_text(whole, "utf-8")
    with pytest.raises(UserError, match=rf"dev\.json.*{re.escape(said)}"):
        asked("drcd", tmp_path)
    (tmp_path / "drcd/dev.json").write_text(json.dumps({"data": []}), "utf-8")
    assert asked("drcd", tmp_path) == []
