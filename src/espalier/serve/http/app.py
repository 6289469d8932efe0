"""The routes: OpenAI's, those of a reward model and a tokenizer, and the ones of ColossalAI's chat server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.responses import Response

from espalier.errors import UserError
from espalier.serve.http import answering, asking
from espalier.serve.http.bodies import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ErrorBody,
    GenerateBody,
    SampledBody,
    ScoreBody,
    TokenizeBody,
)
from espalier.serve.http.errors import Json, Refusal
from espalier.serve.http.limits import Gate, HttpLimits
from espalier.serve.http.listening import EventStream, Listening, sse, while_connected
from espalier.serve.http.metrics import Metrics
from espalier.serve.model import ServedModel
from espalier.serve.requests import TextPiece
from espalier.serve.scorer import ServedScorer

Result = TypeVar("Result")

REFUSED_TEXT = "I cannot say that."
"""What the routes of ColossalAI's server say in place of an answer with a word of the list."""

_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


@dataclass
class Served:
    """What a server has.

    Attributes:
        models: by their names, the first is asked where none is named.
        scorers: reward models, by theirs.
        most_tokens: of one answer.
        limits: of requests.
        origins: web pages that may ask from a browser.
    """

    models: Mapping[str, ServedModel]
    scorers: Mapping[str, ServedScorer]
    most_tokens: int = 4096
    limits: HttpLimits = field(default_factory=HttpLimits)
    origins: tuple[str, ...] = ()

    def model(self, name: str) -> ServedModel:
        """One that writes."""
        found: ServedModel = _named(self.models, name, "model that writes")
        return found

    def scorer(self, name: str) -> ServedScorer:
        """One that scores."""
        found: ServedScorer = _named(self.scorers, name, "reward model")
        return found


def _named(known: Mapping[str, Any], name: str, what: str) -> Any:
    if not known:
        raise Refusal(404, f"there is no {what} on this server.", param="model", code="model_not_found")
    if name and name not in known:
        raise Refusal(
            404,
            f"there is no {what} {name!r} here; there are {', '.join(known)}.",
            param="model",
            code="model_not_found",
        )
    return known[name or next(iter(known))]


def make_app(served: Served) -> FastAPI:
    """The server's program."""
    errors = {status: {"model": ErrorBody} for status in (400, 401, 403, 404, 408, 413, 429, 500, 503, 504)}
    app = FastAPI(title="Espalier", docs_url=None, redoc_url=None, responses=errors)  # type: ignore[arg-type]
    metrics = Metrics(served.models.values())
    _handle_errors(app)
    _writing_routes(app, served)
    _listing_routes(app, served, metrics)
    _judging_routes(app, served)
    _colossal_routes(app, served)
    routes = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    app.add_middleware(Gate, limits=served.limits, metrics=metrics, routes=routes)
    if served.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=served.origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=["Retry-After"],
        )  # fmt: skip
    _describe_refusals(app)
    return app


def _describe_refusals(app: FastAPI) -> None:
    """A wrong body is 400 here, as OpenAI has it, and not 422."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        made = plain()
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return made

    app.openapi = openapi  # type: ignore[method-assign]


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return refusal.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return Refusal(400, f"the body is no JSON (character {first['loc'][-1]}).").response()
        place = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        message = (
            "is not honoured by this server. Leave it out."
            if first["type"] == "extra_forbidden"
            else first["msg"]
        )
        return Refusal(400, f"{place}: {message}", param=place).response()

    @app.exception_handler(HTTPException)
    async def not_found(_: Request, error: HTTPException) -> Response:
        response = Refusal(error.status_code, str(error.detail)).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return Refusal(500, "the server has failed at this request.").response()


_threads: list[anyio.CapacityLimiter] = []


async def _apart(work: Callable[..., Result], *given: Any) -> Result:
    """Tokenising and scoring in one of four threads, while the loop goes on."""
    if not _threads:
        _threads.append(anyio.CapacityLimiter(4))
    return await anyio.to_thread.run_sync(work, *given, limiter=_threads[0])


def _writing_routes(app: FastAPI, served: Served) -> None:
    @app.post("/v1/chat/completions", responses=_STREAMS)
    async def chat_completions(body: ChatBody, http: Request) -> Response:
        """An answer to a conversation."""
        model = served.model(body.model)
        question = await _apart(asking.chat_question, model, body, served.most_tokens)
        usage, judge = _usage(body), None if body.rank_by is None else served.scorer(body.rank_by)
        if judge is not None and body.stream:
            raise Refusal(
                400, "rank_by: answers are ranked when all are there; wanted stream: false.", param="rank_by"
            )
        listening = Listening(model.engine, [question.request])
        if body.stream:
            return EventStream(answering.streamed_chat(model, question, listening, usage), listening)
        made = await while_connected(http, answering.whole_chat(model, question, listening))
        if judge is not None:
            made["choices"] = await _scored(judge, body.messages, made["choices"])
        return Json(made)

    @app.post("/v1/completions", responses=_STREAMS)
    async def completions(body: CompletionBody, http: Request) -> Response:
        """A text that goes on."""
        model = served.model(body.model)
        requests = await _apart(asking.completion_requests, model, body, served.most_tokens)
        usage = _usage(body)
        listening = Listening(model.engine, requests)
        if body.stream:
            return EventStream(answering.streamed_completion(model, listening, usage), listening)
        return Json(await while_connected(http, answering.whole_completion(model, listening)))


def _usage(body: SampledBody) -> bool:
    if body.stream_options is not None and not body.stream:
        raise Refusal(400, "stream_options: wanted together with stream: true.", param="stream_options")
    return bool(body.stream_options and body.stream_options.include_usage)


def _listing_routes(app: FastAPI, served: Served, metrics: Metrics) -> None:
    began = int(time.time())

    def card(name: str) -> dict[str, Any]:
        of = served.models.get(name) or served.scorers[name]
        return {
            "id": name,
            "object": "model",
            "created": began,
            "owned_by": "espalier",
            "max_model_len": of.context,
            "kind": "model" if name in served.models else "reward",
        }

    @app.get("/v1/models")
    async def models() -> Response:
        """Who can be asked."""
        return Json({"object": "list", "data": [card(name) for name in (*served.models, *served.scorers)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """One of them."""
        if name not in served.models and name not in served.scorers:
            raise Refusal(404, f"there is no model {name!r} here.", param="model", code="model_not_found")
        return Json(card(name))

    @app.get("/health")
    async def health() -> Response:
        """Whether it is up."""
        return Json({"status": "ok", "models": [*served.models, *served.scorers]})

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
    async def numbers() -> Response:
        """What was done so far."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


async def _scores(
    scorer: ServedScorer, turns: Sequence[Mapping[str, Any]], answers: Sequence[str]
) -> list[float]:
    messages = asking.conversation(turns)
    size = sum(len(turn.text) for turn in messages) + max(map(len, answers))
    asking.check_length(size, scorer.context or 1 << 20, "answers")
    for answer in answers:
        asking.check_text(answer, "answers")
    try:
        return await _apart(scorer.score, messages, answers)
    except UserError as error:
        raise Refusal(400, str(error)) from None


async def _scored(
    judge: ServedScorer, turns: Sequence[Mapping[str, Any]], choices: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The choices of a chat with their scores, best first."""
    scores = await _scores(judge, turns, [choice["message"]["content"] or "" for choice in choices])
    best = sorted(range(len(scores)), key=lambda at: -scores[at])
    return [{**choices[at], "index": place, "score": scores[at]} for place, at in enumerate(best)]


def _judging_routes(app: FastAPI, served: Served) -> None:
    @app.post("/score")
    async def score(body: ScoreBody) -> Response:
        """A reward model's scores of answers to one conversation; higher is better."""
        scorer = served.scorer(body.model)
        scores = await _scores(scorer, body.messages, body.answers)
        best = max(range(len(scores)), key=scores.__getitem__)
        return Json({"model": scorer.name, "scores": scores, "best": best})

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        """Ids of a text, or of a conversation as the model reads it."""
        model = served.model(body.model)
        if (body.text is None) == (body.messages is None):
            raise Refusal(400, "wanted either text or messages.", param="text")
        if body.messages is not None:
            try:
                ids = model.asked(asking.conversation(body.messages)).ids
            except UserError as error:
                raise Refusal(400, str(error), param="messages") from None
        else:
            asking.check_text(body.text or "", "text")
            ids = await _apart(model.encode, body.text or "")
        return Json(
            {"model": model.name, "tokens": list(ids), "count": len(ids), "max_model_len": model.context}
        )

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Response:
        """The text of ids."""
        model = served.model(body.model)
        asking.check_ids(body.tokens, len(model.tokenizer), "tokens")
        return Json({"model": model.name, "text": str(model.tokenizer.decode(body.tokens))})


def _colossal_routes(app: FastAPI, served: Served) -> None:
    def asked(body: GenerateBody) -> tuple[ServedModel, asking.ChatQuestion]:
        model = served.model("")
        return model, asking.generate_question(model, body, served.most_tokens)

    @app.post("/generate")
    async def generate(body: GenerateBody, http: Request) -> Response:
        """An answer as one JSON text."""
        model, question = await _apart(asked, body)
        listening = Listening(model.engine, [question.request])
        whole = await while_connected(http, answering.whole_chat(model, question, listening))
        (choice,) = whole["choices"]
        refused = choice["finish_reason"] == "content_filter"
        return Json(REFUSED_TEXT if refused else choice["message"]["content"].lstrip())

    @app.post("/generate/stream", responses=_STREAMS)
    async def generate_stream(body: GenerateBody) -> Response:
        """The same as events `generate`, with an `end`."""
        model, question = await _apart(asked, body)
        listening = Listening(model.engine, [question.request])
        return EventStream(_generated(question, listening), listening)


async def _generated(question: asking.ChatQuestion, listening: Listening) -> AsyncIterator[str]:
    choice, begun = answering.ChatChoice(question), False
    try:
        async for _, event in listening.events():
            if isinstance(event, TextPiece):
                deltas = choice.feed(event.text)
            else:
                deltas, reason = choice.end(event.reason)
                deltas = [{"content": REFUSED_TEXT}] if reason == "content_filter" else deltas
            for delta in deltas:
                text = delta.get("content", "")
                text = text if begun else text.lstrip()
                begun = begun or bool(text)
                if text:
                    yield sse(text, "generate")
    except Refusal as refusal:
        yield sse(refusal.message, "error")
        return
    yield sse("", "end")
