"""Nothing of others is obeyed by a terminal: control characters and markup, at every door that prints."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

import espalier
from espalier import cli
from espalier.engine.progress import ProgressLine
from espalier.errors import UserError
from espalier.exam.numbers.compare import comparison_table
from espalier.screen import Screen, json_text, safe

EVIL = "a\x1b[31mred\x1b]0;title\x07 \x9b2J \x08\x00\r[red]b[/red] [/] [link=http://x]:smile: \ud83d end"
SEEN = r"a\x1b[31mred\x1b]0;title\x07 \x9b2J \x08\x00\x0d[red]b[/red] [/] [link=http://x]:smile: \ud83d end"
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def screen(**settings: Any) -> Screen:
    return Screen(file=io.StringIO(), width=300, **settings)


def read(console: Screen) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_control_character_but_tab_and_newline_is_written_out() -> None:
    for code in [*range(0x20), 0x7F, *range(0x80, 0xA0), 0xD800, 0xDFFF]:
        made = safe(f"a{chr(code)}b")
        assert (made == f"a{chr(code)}b") == (chr(code) in "\t\n"), hex(code)
        assert not OBEYED.search(made)
    kept = "中文 é 🙂\u200d \xa0\xad\tx\n"
    assert safe(kept) == kept
    assert safe(EVIL) == SEEN
    assert safe(safe(EVIL)) == safe(EVIL)


@pytest.mark.parametrize("way", ["print", "say", "out", "text", "cell", "title"])
def test_whatever_is_printed_and_how(way: str) -> None:
    console = screen()
    table = Table(title=EVIL if way == "title" else None, box=None, pad_edge=False, padding=0)
    table.add_row(EVIL)
    {
        "print": lambda: console.print(EVIL, soft_wrap=True),
        "say": lambda: console.say(EVIL, "dim"),
        "out": lambda: console.out(EVIL),
        "text": lambda: console.print(Text(safe(EVIL), style="bold"), soft_wrap=True),
        "cell": lambda: console.print(table),
        "title": lambda: console.print(table),
    }[way]()
    assert SEEN in read(console) and not OBEYED.search(read(console))


def test_a_text_that_nobody_made_safe_is_made_so_at_the_door() -> None:
    console = screen()
    console.print(Text("x\x1b[2J\x9b1m"), soft_wrap=True)
    assert read(console) == "x\\x1b[2J\\x9b1m\n"


def test_its_own_styles_still_reach_a_terminal() -> None:
    console = screen(force_terminal=True, color_system="standard")
    console.say("x\x1b[2J", "red")
    assert read(console) == "\x1b[31mx\\x1b[2J\x1b[0m\n"


def test_a_live_line_and_a_comparison() -> None:
    console = screen(force_terminal=True, color_system=None)
    line = ProgressLine("[red]name\x1b[2J", 3, console)
    line.move(1, EVIL)
    line.say(2, EVIL)
    line.close()
    assert SEEN in read(console) and "[red]name\\x1b[2J 2/3" in read(console)
    assert "\x1b]0;title" not in read(console) and "\x9b" not in read(console)
    console = screen()
    numbers = {"n": 2, "mean_a": 0.5, "mean_b": 0.5, "difference": 0.0, "interval": [0.0, 0.0], "p": None}
    numbers |= {"low": 0.0, "high": 0.0, "metric": "accuracy"}
    console.print(comparison_table([{"a": EVIL, "b": EVIL, "task": EVIL, **numbers}]))
    assert read(console).count(SEEN) >= 2 and not OBEYED.search(read(console))


def test_json_stays_json() -> None:
    made = json_text({"x": EVIL, "字": [1]})
    assert json.loads(made) == {"x": EVIL, "字": [1]} and "字" in made and not OBEYED.search(made)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Records with sequences everywhere, in a file with one in its name."""
    folder = tmp_path / "a\x1b[31mb"
    folder.mkdir()
    rows = [
        {"messages": [{"role": "user", "content": f"{i} {EVIL}"}, {"role": "assistant", "content": EVIL}]}
        for i in range(3)
    ]
    file = folder / "[red]data\x07.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows).replace("\\ud83d", ""), "utf-8")
    return file


@pytest.mark.parametrize("how", [[], ["--json"], ["--html", "page.html"]])
def test_inspect(data: Path, how: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent.parent)
    done = CliRunner().invoke(cli.app, ["inspect", str(data), *how])
    assert done.exit_code == 0, done.exception
    assert not OBEYED.search(done.output)
    if not how:
        assert r"\x1b]0;title\x07 \x9b2J" in done.output and "[red]b[/red]" in done.output
        assert "[red]data\\x07.jsonl" in done.output


def test_an_error_message(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError(f"{EVIL}: bad\nsecond line")

    assert cli.guarded(fail) == 2
    said = capsys.readouterr().err
    assert said == f"error: {SEEN}: bad\nsecond line\n"


def test_an_error_about_such_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "x\x1b[2J[bold].jsonl"
    bad.write_text('{"a": \x1b[31m}\n', "utf-8")
    assert cli.guarded(lambda: cli.app(["inspect", str(bad)], standalone_mode=False)) == 2
    said = capsys.readouterr()
    assert not OBEYED.search(said.err + said.out) and r"x\x1b[2J[bold].jsonl" in said.err


def test_no_other_door_and_no_markup_in_strings() -> None:
    """rich's own console obeys what it prints; styles go beside a text, as `say(text, style)`."""
    for file in Path(espalier.__file__).parent.rglob("*.py"):
        text = file.read_text("utf-8")
        if file.name != "screen.py":
            assert "rich.console import Console" not in text, f"{file}: use espalier.screen.Screen"
        assert not re.search(r"\[(dim|bold|red|green|yellow|cyan)( \w+)?\]|\[/\]", text), f"{file}: markup"
        code = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith((">>>", "...")))
        printed = re.findall(r"(?<![\w.])print\(\s*(.*)", code)
        ours = r"safe\(|json_text\(|f\"(vocabulary|characters) "
        assert all(re.match(ours, line) for line in printed), f"{file}: {printed}: print(safe(…))"
