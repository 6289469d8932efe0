"""The keys in docs/stages.md and in ``--help`` are those of the options: their types, defaults, allowed values, ranges."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pytest
import yaml

from espalier import cli
from espalier.commands import reference
from espalier.config import describe
from espalier.config.convert import plain
from espalier.config.option import Options, option
from espalier.config.reference import END, groups_of, markdown, terminal, value_words
from espalier.maths.preferences import PREFERENCES
from espalier.runs.pipeline import ALL_CLASSES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "stages.md"
AGAIN = "docs/stages.md is not what the options say. Write it again: python -m espalier.commands.reference"


def test_the_page_is_what_the_options_say() -> None:
    page = PAGE.read_text("utf-8")
    assert reference.current(page) == page, AGAIN


@pytest.mark.parametrize(
    ("old", "new"), [("`1.0e-08`", "`6.0e-08`"), ("at least 257", "at least 256"), (END, f"x\n{END}")]
)
def test_a_page_that_has_drifted_is_found_and_mended(old: str, new: str, tmp_path: Path) -> None:
    sound = PAGE.read_text("utf-8")
    assert old in sound
    page = tmp_path / "stages.md"
    page.write_text(sound.replace(old, new), "utf-8")
    assert reference.current(page.read_text("utf-8")) != page.read_text("utf-8")
    reference.main(page)
    assert page.read_text("utf-8") == sound


def literals(hint: Any) -> Iterator[Any]:
    """The allowed values of a type, wherever they stand in it."""
    for part in get_args(hint):
        if getattr(hint, "__origin__", None) is Literal:
            yield part
        else:
            yield from literals(part)


@pytest.mark.parametrize("stage", ALL_CLASSES)
def test_help_and_page_have_every_key_with_its_default_and_allowed_values(stage: str) -> None:
    shown = " ".join(terminal(stage, ALL_CLASSES[stage]).split())
    page = PAGE.read_text("utf-8")
    for kind in ALL_CLASSES[stage]:
        for item, row in zip(fields(kind), describe([kind]), strict=True):
            (told,) = re.findall(rf" {item.name}: (.*?)\. Default: (.*?)\. {re.escape(row.help)}", shown)
            (line,) = [x for x in page.splitlines() if x.startswith(f"| `{item.name}` |") and row.help in x]
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            by_stage = item.metadata.get("by_stage")
            own = by_stage.stages.get(stage) if by_stage else None
            assert told[0] == cells[1]
            assert yaml.safe_load(told[1]) == plain(row.default if own is None else own.value)
            if "by_stage" not in item.metadata:
                assert f"`{told[1]}`" == cells[2]
            else:
                assert cells[2] == "by stage"
            if own is not None:
                shown_value = own.value if isinstance(own.value, str) else f"{own.value:g}"
                assert f"{stage} {shown_value} ({own.source})" in line
            allowed = [str(value) for value in literals(get_type_hints(kind)[item.name])]
            assert ", ".join(allowed) in told[0]
            limits = {
                name: item.metadata[name]
                for name in ("min", "max", "above", "below")
                if name in item.metadata
            }
            assert len(limits) == len(re.findall("at least|at most|more than|less than", told[0]))
            assert all(str(limit) in told[0] for limit in limits.values())


def test_a_class_stands_on_the_page_once() -> None:
    groups = groups_of(ALL_CLASSES)
    classes = [kind for kinds in groups.values() for kind in kinds]
    assert (
        len(classes) == len(set(classes)) == len({kind for kinds in ALL_CLASSES.values() for kind in kinds})
    )
    assert markdown(ALL_CLASSES).count("## Keys of") == len(groups)
    assert "## Keys of `ppo`, `grpo` and `sample`" in markdown(ALL_CLASSES)


@dataclass(frozen=True, kw_only=True)
class Odd(Options):
    """An odd class."""

    bar: Literal["a|b", "c"] = option("c", "Either | or.")
    share: float | None = option(None, "A share.", above=0, max=1)


def test_marks_of_a_table_in_a_value_stay_in_their_cell() -> None:
    lines = markdown({"x": (Odd,), "y": ()}).splitlines()
    assert r"| `bar` | one of a\|b, c | `c` | Either \| or. |" in lines
    assert value_words(describe([Odd])[1]) == "a number, more than 0 and at most 1, or null"


def test_a_stage_shows_its_keys_as_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.guarded(lambda: cli.app(["dpo", "--help"], standalone_mode=False)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "FILE.yaml" in shown
    assert f"pref_loss: one of {', '.join(PREFERENCES)}. Default: sigmoid." in shown
    assert "clip_range" not in shown
