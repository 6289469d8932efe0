"""The command `espalier serve`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from espalier.commands.arguments import AllowPickle, DtypeName, RopeScaling, TrustRemoteCode
from espalier.disk.reading import read_json
from espalier.errors import UserError
from espalier.screen import Screen

if TYPE_CHECKING:
    from espalier.serve.model import ServedModel


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL [NAME=MODEL ...]", help="Models, runs or hub ids; reward models score answers."
        ),
    ],
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines ask; use keys then.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="ESPALIER_API_KEY", help="Only who has one of these may ask."),
    ] = None,
    cors: Annotated[list[str] | None, typer.Option(help="An origin whose web pages may ask, or *.")] = None,
    template: Annotated[str, typer.Option(help="Of conversations; auto is the model's own.")] = "auto",
    parallel: Annotated[int, typer.Option(min=1, help="Answers of a model that are written at a time.")] = 32,
    queue: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; others are told to come again.")
    ] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 4096,
    context: Annotated[
        int, typer.Option(min=0, help="Tokens of prompt and answer; 0 is the model's own.")
    ] = 0,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that a request may take; 0: any.")] = 600.0,
    rate: Annotated[
        int, typer.Option(min=0, help="Requests a minute of one key or address; 0: any number.")
    ] = 0,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request, in MiB.")] = 4,
    prefix_cache: Annotated[
        int, typer.Option(min=0, help="MiB for what prompts have in common; 0 computes it each time.")
    ] = 256,
    profanity: Annotated[
        Path | None, typer.Option(help="A JSON list of words; an answer ends before it says one.")
    ] = None,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds for open answers after a signal to stop.")
    ] = 30.0,
    rope_scaling: RopeScaling = None,
    dtype: DtypeName = "auto",
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Answer over HTTP by OpenAI's API, many at a time."""
    try:
        from espalier.serve.http.app import Served
        from espalier.serve.http.limits import LOOPBACK, HttpLimits
        from espalier.serve.http.server import run_server
    except ImportError as error:
        raise UserError(f"espalier serve needs {error.name}: pip install 'espalier-llm[serve]'.") from None
    from espalier.serve.opening import ModelOpener, named_models
    from espalier.serve.requests import EngineLimits
    from espalier.serve.scorer import ServedScorer

    if any(not key.strip() for key in api_key or ()):
        raise UserError("--api-key: an empty key lets everybody in. Give one, or leave the option out.")
    screen = Screen(stderr=True)
    engine = EngineLimits(context, parallel, queue, timeout, prefix_cache << 20, banned=_words(profanity))
    opener = ModelOpener(engine, template, dtype, rope_scaling, allow_pickle, trust_remote_code)
    writers: dict[str, ServedModel] = {}
    scorers: dict[str, ServedScorer] = {}
    for name, folder in named_models(models).items():
        found = opener.any(name, folder)
        if isinstance(found, ServedScorer):
            scorers[name] = found
            screen.say(f"{name}: a reward model; POST /score")
        else:
            writers[name] = found
            screen.say(f"{name}: {_described(found)}")
    limits = HttpLimits(
        tuple(api_key or ()), max_body << 20, only_loopback=host in LOOPBACK and not api_key, rate=rate
    )
    if host not in LOOPBACK and not api_key:
        screen.say(
            "note: anybody who reaches this address may ask; --api-key KEY lets in only who has it", "yellow"
        )
    served = Served(writers, scorers, max_tokens, limits, tuple(cors or ()))
    run_server(served, host, port, grace, lambda url: screen.say(f"listening on {url}", "bold"))


def _described(made: ServedModel) -> str:
    rows, limits = made.engine.rows, made.engine.limits
    text = f"context {made.context} tokens, {limits.rows} answers at a time"
    if rows.one_batch:
        text += "; this family is answered batch by batch"
    if not rows.prefix_bytes:
        return f"{text}; what prompts have in common is computed each time"
    return f"{text}, {rows.prefix_bytes >> 20} MiB for what prompts have in common"


def _words(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    words = read_json(file, "--profanity")
    if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
        raise UserError(f"--profanity {file}: wanted a JSON list of words, found {json.dumps(words)[:60]}.")
    return tuple(word.strip() for word in words)
