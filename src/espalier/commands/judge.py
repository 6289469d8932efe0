"""The command `espalier judge`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from espalier.commands.arguments import AsJson
from espalier.screen import Screen, json_text, safe


def judge(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The --out of `evaluate` with several models.")],
    url: Annotated[str, typer.Option(help="Of the API, such as http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option(help="The judge's name there.")],
    key_from: Annotated[str, typer.Option(help="The environment variable with the key.")] = "OPENAI_API_KEY",
    seconds: Annotated[float, typer.Option(min=0.1, help="For one answer of the judge.")] = 120.0,
    as_json: AsJson = False,
) -> None:
    """Which of two models answers better, by a language model behind an OpenAI-compatible endpoint."""
    from espalier.checking.endpoint import Endpoint
    from espalier.exam.judging import judge_all

    rows = judge_all(out, Endpoint(url, model, os.environ.get(key_from, ""), seconds))
    if as_json:
        print(json_text({"pairs": rows}))
        return
    for row in rows:
        Screen().print(_table(row))


def _table(row: dict[str, Any]) -> Table:
    made = Table(title=safe(f"{row['task']}: {row['b']} against {row['a']}"), title_justify="left", box=None, show_header=False)  # fmt: skip
    lines = {"judged": str(row["n"])}
    if row["n"]:
        error = "" if row["stderr"] is None else f"±{row['stderr']:.3f}"
        lines |= {
            "win rate": f"{row['win_rate']:.3f}{error} (ties count half)",
            "win rate at equal length": f"{row['length_controlled']:.3f}",
            "wins, ties, losses": f"{row['wins']}, {row['ties']}, {row['losses']}",
            "of the ties, by the order": f"{row['order_decided']} (the judge took the same place both times)",
        }
    if row["unanswered"]:
        lines["not judged"] = f"{row['unanswered']} questions that the exam left out for one of the two"
    if row["unreadable"]:
        lines["left out"] = (
            f"{row['unreadable']} questions, without [[A]], [[B]] or [[C]] in the judge's answer"
        )
    for name, text in lines.items():
        made.add_row(name, safe(text))
    return made
