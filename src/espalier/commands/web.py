"""The command `espalier web`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from espalier.commands.arguments import AllowPickle, DtypeName, RopeScaling, TrustRemoteCode
from espalier.errors import UserError
from espalier.screen import Screen


def web(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL | NAME=MODEL ...]", help="Models, runs, hub ids, reward models."),
    ] = None,
    runs: Annotated[
        list[Path] | None, typer.Option(help="A folder with runs, whose curves are shown while they train.")
    ] = None,
    votes: Annotated[Path, typer.Option(help="The file of votes, which dpo and reward read.")] = Path(
        "votes.jsonl"
    ),
    host: Annotated[
        str, typer.Option(help="0.0.0.0 lets other machines look; give a password then.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    password: Annotated[
        str | None, typer.Option(envvar="ESPALIER_PASSWORD", help="Only who has it sees models and runs.")
    ] = None,
    lang: Annotated[Literal["auto", "en", "zh"], typer.Option(help="auto: the browser's.")] = "auto",
    template: Annotated[str, typer.Option(help="Of conversations; auto is each model's own.")] = "auto",
    parallel: Annotated[int, typer.Option(min=1, help="Answers of a model that are written at a time.")] = 8,
    rope_scaling: RopeScaling = None,
    dtype: DtypeName = "auto",
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """A page to talk to models, compare them, vote, and watch runs."""
    try:
        from espalier.serve.http.app import Served
        from espalier.serve.http.limits import LOOPBACK, HttpLimits
        from espalier.serve.web.runs import RunShelf
        from espalier.serve.web.site import Site, run_site
    except ImportError as error:
        raise UserError(f"espalier web needs {error.name}: pip install 'espalier-llm[web]'.") from None
    from espalier.serve.model import ServedModel
    from espalier.serve.opening import ModelOpener, named_models
    from espalier.serve.requests import EngineLimits

    if not models and not runs:
        raise UserError("there is nothing to show. Name a model, or a folder with runs (--runs).")
    if password is not None and not (
        password.isascii() and password.isprintable() and password.strip() == password != ""
    ):
        raise UserError("--password: wanted letters, digits and marks of ASCII, without spaces at its ends.")
    for folder in runs or ():
        if not folder.is_dir():
            raise UserError(f"--runs {folder}: there is no such folder.")
    screen = Screen(stderr=True)
    limits = EngineLimits(0, parallel)
    opener = ModelOpener(limits, template, dtype, rope_scaling, allow_pickle, trust_remote_code)
    opened = {name: opener.any(name, folder) for name, folder in named_models(models or []).items()}
    writers = {name: model for name, model in opened.items() if isinstance(model, ServedModel)}
    scorers = {name: model for name, model in opened.items() if not isinstance(model, ServedModel)}
    keys = () if password is None else (password,)
    asked = HttpLimits(keys, only_loopback=host in LOOPBACK and not keys)
    if host not in LOOPBACK and not keys:
        screen.say(
            "note: anybody who reaches this address may ask; --password lets in only who has it", "yellow"
        )
    site = Site(Served(writers, scorers, limits=asked), votes, RunShelf(tuple(runs or ())), lang)
    run_site(site, host, port, lambda url: screen.say(f"look at {url}", "bold"))
