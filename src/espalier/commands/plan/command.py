"""The command `espalier plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The options of a stage or a pipeline.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value ...]", help="Options that win over the file's.")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="A device of the table, such as A100-80; this machine's own where none is named."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """Memory and time of each stage before it runs: whether it fits, what takes the most, and what to change."""
    from espalier.commands.plan.show import show_plan

    show_plan(file, overrides or [], gpu, gpus, as_json=as_json)
