"""The command `espalier inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.commands.arguments import AllowPickle, AsJson, TrustRemoteCode
from espalier.errors import UserError


def inspect(
    what: Annotated[
        str, typer.Argument(metavar="MODEL|DATA|CONFIG", help="A folder, a data file or a YAML.")
    ],
    model: Annotated[str | None, typer.Option(help="For data: whose tokenizer and template.")] = None,
    template: Annotated[str | None, typer.Option(help="For data: the template's name.")] = None,
    kind: Annotated[
        str | None, typer.Option("--as", help="For data: chat, preference, ranking, unpaired, text, prompt.")
    ] = None,
    cutoff_len: Annotated[int | None, typer.Option(help="For data: the most tokens of a record.")] = None,
    overlong: Annotated[str, typer.Option(help="For data: trim or drop what is longer.")] = "trim",
    limit: Annotated[int, typer.Option(help="How many records to show.")] = 3,
    with_probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="For models: load the weights and find the layout.")
    ] = True,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with the same, in colour.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look before you train: a model's parts, a data file's trained text, a config as it will run."""
    from espalier.commands.inspect.data import DataQuestion
    from espalier.commands.inspect.look import inspect as look

    if overlong not in ("trim", "drop"):
        raise UserError(f"--overlong {overlong}: wanted trim or drop.")
    if cutoff_len is not None and cutoff_len < 2:
        raise UserError(f"--cutoff-len {cutoff_len}: wanted a number of tokens from 2 on.")
    look(
        what,
        DataQuestion(model, template, kind, cutoff_len, overlong, limit),
        as_json=as_json,
        html=html,
        with_probe=with_probe,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
