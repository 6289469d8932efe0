"""The page's program: its files, which anybody may load, and what they ask for, which may need a password."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from espalier.errors import UserError
from espalier.serve.http.app import Served, make_app
from espalier.serve.http.asking import check_length, conversation
from espalier.serve.http.errors import Json, Refusal
from espalier.serve.http.listening import EventStream
from espalier.serve.http.server import run_app
from espalier.serve.web.bodies import AskBody, VoteBody
from espalier.serve.web.runs import RunShelf
from espalier.serve.web.talking import Ballot, Exchange, asked_sides, told

PAGE = Path(__file__).parent / "page"

GRACE = 1.0
"""Seconds that answers may take after a signal; a page asks again by itself."""

_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]
"""The page loads nothing from anywhere else, whatever a model has written into it."""


@dataclass
class Site:
    """What the page shows.

    Attributes:
        served: models and reward models, and who may ask.
        votes: the jsonl file of votes.
        runs: run folders.
        language: `en`, `zh`, or `auto`, the browser's own.
    """

    served: Served
    votes: Path
    runs: RunShelf = field(default_factory=lambda: RunShelf(()))
    language: str = "auto"


def make_site(site: Site) -> Starlette:
    """The page, what it asks for, and OpenAI's routes beside it."""
    asked = make_app(site.served)
    _talking_routes(asked, site.served, Ballot(site.votes))
    _looking_routes(asked, site)

    async def page(_: Request) -> Response:
        text = (PAGE / "index.html").read_text("utf-8").replace("LANGUAGE", site.language)
        return Response(text, media_type="text/html; charset=utf-8")

    routes = [
        Route("/", page),
        Mount("/page", StaticFiles(directory=PAGE)),
        Mount("/", asked),
    ]
    return Starlette(routes=routes, middleware=[Middleware(_Guarded)])


class _Guarded:
    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                more = [header for header in _HEADERS if header[0] not in given]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self._app(scope, receive, send_guarded)


async def _apart(work: Callable[..., Any], *given: Any) -> Any:
    return await anyio.to_thread.run_sync(work, *given)


def _talking_routes(app: FastAPI, served: Served, ballot: Ballot) -> None:
    @app.post("/web/ask", include_in_schema=False)
    async def ask(body: AskBody) -> Response:
        models = [served.model(name) for name in body.models]
        scorer = served.scorer(body.scorer) if body.scorer else None
        prompt = conversation(body.messages)
        settings = body.settings.settings()
        size = sum(len(message.text) for message in prompt)
        check_length(size, min(model.context for model in models) * 8, "messages")
        try:
            sides = await _apart(asked_sides, models, prompt, settings, body.blind)
            exchange = Exchange(sides)
        except UserError as error:
            raise Refusal(400, str(error), param="messages") from None
        events = told(exchange, prompt, ballot, scorer, _apart, body.blind)
        return EventStream(events, exchange)  # type: ignore[arg-type]

    @app.post("/web/vote", include_in_schema=False)
    async def vote(body: VoteBody) -> Response:
        return Json(await _apart(ballot.vote, body.id, body.vote))


def _looking_routes(app: FastAPI, site: Site) -> None:
    @app.get("/web/about", include_in_schema=False)
    async def about() -> Response:
        served = site.served
        return Json(
            {
                "models": {name: model.context for name, model in served.models.items()},
                "scorers": list(served.scorers),
                "votes": str(site.votes),
                "runs": bool(site.runs.folders),
            }
        )

    @app.get("/web/runs", include_in_schema=False)
    async def runs() -> Response:
        return Json(await _apart(site.runs.listed))

    @app.get("/web/runs/{name:path}", include_in_schema=False)
    async def run(name: str, http: Request) -> Response:
        known = http.headers.get("if-none-match", "").strip('"')
        try:
            mark, view = await _apart(site.runs.shown, name, known)
        except UserError as error:
            raise Refusal(404, str(error)) from None
        headers = {"ETag": f'"{mark}"'}
        return Response(status_code=304, headers=headers) if view is None else Json(view, headers=headers)


def run_site(site: Site, host: str, port: int, say: Callable[[str], None]) -> None:
    """Show the page until a signal comes.

    Args:
        host, port: where; port 0 takes a free one.
        say: told the address.

    Raises:
        UserError: the address cannot be had.
    """
    run_app(make_site(site), site.served, (host, port), GRACE, lambda url: say(f"{url}/"))
