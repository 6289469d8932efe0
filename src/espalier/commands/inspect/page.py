"""An inspection as one self-contained page: findings, lengths, languages, and records with trained text in green."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from espalier import report
from espalier.commands.inspect.coloured import ColouredRecord
from espalier.data.preflight.run import PreflightReport
from espalier.disk.writing import writing_to
from espalier.engine import files
from espalier.report.data import data_view
from espalier.report.plots import show
from espalier.screen import Screen


@dataclass(frozen=True)
class Section:
    """One data set, or one stage of a config."""

    name: str
    subtitle: str
    preflight: PreflightReport
    records: Sequence[ColouredRecord]


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page in one step; a folder that is missing is made.

    Raises:
        UserError: the file cannot be written.
    """
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, render(title, sections))
    Screen(stderr=True).say(f"page: {path}", "dim")


def render(title: str, sections: Sequence[Section]) -> str:
    """The page as text; every value is escaped by jinja."""
    here = Environment(
        loader=FileSystemLoader([Path(__file__).parent, *report.__path__]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    here.filters.update(show=show)
    views = [(section, data_view(section.preflight.as_json())) for section in sections]
    return here.get_template("page.html.jinja").render(title=title, sections=views)
