"""A reader of the user's own: its rows are read like any others, and its code is part of what the data is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from espalier.data.read.sources import LoadReport
from espalier.data.read.specs import parse_specs
from espalier.data.store.again import records_at
from espalier.data.store.blocks import Job
from espalier.data.store.key import content
from espalier.data.store.open import ReadSettings, opened
from espalier.errors import UserError

READER = '''
"""Dialogues between blank lines."""
from near import parted

def read(path):
    for block in parted(path.read_text("utf-8")):
        asked, answered = block.split("\\n")
        yield {"prompt": asked[2:], "completion": answered[2:]}

def folder(path):
    for file in sorted(path.glob("*.dlg")):
        yield from read(file)

def half(path):
    yield {"prompt": "\\ud83d", "completion": "a"}
    yield "no dict"
    yield {"prompt": "q", "completion": "a"}

def broken(path):
    yield {"prompt": "q", "completion": "a"}
    yield {"prompt": "q"}["completion"]

def forgotten(path):
    [row for row in read(path)]

def leaves(path):
    raise SystemExit("enough")
'''
NEAR = 'def parted(text):\n    return text.strip().split("\\n\\n")\n'
DIALOGUES = "".join(f"Q:问{number}\nA:答{number}\n\n" for number in range(40))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, text in (
        ("own.py", READER),
        ("near.py", NEAR),
        ("in/a.dlg", DIALOGUES),
        ("in/b.dlg", DIALOGUES),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8", errors="surrogatepass")
    return tmp_path


def entry(place: Path, function: str, path: str = "in/a.dlg") -> dict[str, Any]:
    return {"path": str(place / path), "reader": f"{place}/own.py:{function}"}


def read(place: Path, given: Any, **how: Any) -> LoadReport:
    return opened(parse_specs(given), Job("chat"), ReadSettings(place / "stores", **how))[2]


@pytest.mark.parametrize(
    ("function", "path", "count"), [("read", "in/a.dlg", 40), ("read", "in/*.dlg", 80), ("folder", "in", 80)]
)
def test_files_globs_and_folders_are_read(place: Path, function: str, path: str, count: int) -> None:
    given = entry(place, function, path)
    loaded = read(place, given)
    assert len(loaded.records) == count
    specs, settings = parse_specs(given), ReadSettings(place / "stores")
    [record] = records_at(specs, Job("chat"), settings, loaded.records, [count - 2])  # type: ignore[arg-type]
    name = path.replace("*", "b")
    assert [turn.content for turn in record.messages] == ["问38", "答38"]
    assert record.source == f"{place}/{name}:{count - 1 if path == 'in' else 39}"
    assert set(loaded.hashes) >= {f"{place}/own.py", f"{place}/near.py", f"{place}/in/a.dlg"}


def test_a_change_of_the_reader_or_of_what_it_imports_is_other_data(place: Path) -> None:
    [spec] = parse_specs(entry(place, "read"))
    seen = [content(spec, place / "known")]
    for name, text in (("own.py", READER.replace("completion", "response")), ("near.py", NEAR + "# more\n")):
        read(place, entry(place, "read"))
        (place / name).write_text(text, "utf-8", errors="surrogatepass")
        seen.append(content(spec, place / "known"))
    read(place, entry(place, "read"))
    assert len({str(sorted(one.items())) for one in seen}) == 3
    assert len([one for one in (place / "stores").iterdir() if one.is_dir()]) == 3


def test_what_a_reader_does_wrong_is_one_message(place: Path) -> None:
    loaded = read(place, entry(place, "half"), skip_bad=True)
    assert len(loaded.records) == 1
    assert loaded.left_out == {"bad record: broken character": 1, "bad record: not an object": 1}
    for function, said in (
        (
            "broken",
            r"own\.py:broken, .*a\.dlg, behind record 1: .*own\.py:\d+: KeyError: 'completion' \(in: yield",
        ),
        ("forgotten", r"forgotten returned null, wanted dicts one by one \(use `yield`\)"),
        ("absent", r"has no function 'absent'; it has parted, read, folder"),
        ("leaves", r"own\.py:\d+: SystemExit: enough"),
    ):
        with pytest.raises(UserError, match=said):
            read(place, entry(place, function))
    with pytest.raises(UserError, match="no such file or folder"):
        read(place, entry(place, "read", "owner/name"))
    for reader, said in (
        ("own.py", "wanted FILE.py:FUNCTION"),
        (3, "wanted FILE.py:FUNCTION"),
        (f"{place}/other.py:read", r"there is no file .*other\.py"),
    ):
        with pytest.raises(UserError, match=rf"dataset, entry 1: `reader`.*{said}"):
            parse_specs({"path": "a", "reader": reader})
    (place / "own.py").write_text("def read(path:\n", "utf-8")
    with pytest.raises(UserError, match=r"own\.py:1: SyntaxError"):
        parse_specs(entry(place, "read"))


@pytest.mark.parametrize("page", ["docs/data.md", "README.md", "README.zh.md"])
def test_the_example_of_the_documents_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    text = (Path(__file__).parents[3] / page).read_text("utf-8")
    [code] = re.findall(r"```python\n# dialogues\.py\n(.*?)```", text, re.DOTALL)
    [config] = re.findall(r"```yaml\n(dataset:\n  - \{path: dialogues\.txt.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("dialogues.py").write_text(code, "utf-8")
    Path("dialogues.txt").write_text("Q: 1+1?\nA: 2\n\nQ: 你好\nA: 好\n第二行\n", "utf-8")
    loaded = read(tmp_path, yaml.safe_load(config)["dataset"])
    specs = parse_specs(yaml.safe_load(config)["dataset"])
    records = records_at(specs, Job("chat"), ReadSettings(tmp_path), loaded.records, [0, 1])  # type: ignore[arg-type]
    assert [[turn.content for turn in record.messages] for record in records] == [
        ["1+1?", "2"],
        ["你好", "好\n第二行"],
    ]
