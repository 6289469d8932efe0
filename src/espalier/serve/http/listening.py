"""An engine's events in an asyncio program, and answers that end when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse

from espalier.errors import UserError
from espalier.serve.engine import Engine
from espalier.serve.http.errors import Refusal
from espalier.serve.requests import Event, Failed, Finished, Full, Request, TextPiece, Ticket

SLOW = 60.0
"""Seconds that a client may take to read one piece of a stream."""


class Listening:
    """Several requests to one engine, as one stream of events.

    Choice c of request r is told as number ``c + r * n``.

    Raises:
        Refusal: the engine is full, or cannot answer one of them; then none is asked.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._left = sum(request.settings.n for request in requests)
        self._tickets: list[Ticket] = []
        self.requests = requests
        try:
            for number, request in enumerate(requests):
                self._tickets.append(engine.submit(request, self._teller(number * request.settings.n)))
        except Full as error:
            self.close()
            raise Refusal(429, str(error), code="queue_full", again=error.seconds) from None
        except UserError as error:
            self.close()
            raise Refusal(400, str(error), code="cannot_be_answered") from None

    @property
    def reused(self) -> int:
        """Tokens of the prompts that were known already."""
        return sum(ticket.reused for ticket in self._tickets)

    def _teller(self, first: int) -> Any:
        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                self._loop.call_soon_threadsafe(self._told.put_nowait, (first, event))

        return tell

    async def events(self) -> AsyncIterator[tuple[int, TextPiece | Finished]]:
        """(number of the answer, event), until all answers have ended.

        Raises:
            Refusal: an answer took too long, or the model failed.
        """
        try:
            while self._left:
                first, event = await self._told.get()
                if isinstance(event, Failed):
                    status = 504 if event.reason == "timeout" else 500
                    raise Refusal(status, event.message, code=event.reason)
                self._left -= isinstance(event, Finished)
                yield first + event.choice, event
        finally:
            self.close()

    def close(self) -> None:
        """Whoever asked is gone, or has all answers."""
        for ticket in self._tickets:
            ticket.cancel()


async def while_connected(http: HttpRequest, work: Any) -> Any:
    """What a coroutine gives; it is cancelled when the client goes away.

    Raises:
        asyncio.CancelledError: it has.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            raise Refusal(499, "the client has gone")
        return task.result()
    finally:
        gone.cancel()


async def _gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events; the requests behind them are cancelled when the client goes away or stops to read.

    Args:
        content: events, written by `sse`.
        listening: what they come from.
    """

    def __init__(self, content: AsyncIterator[str], listening: Listening) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._listening = listening

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See `StreamingResponse`."""

        async def send_in_time(message: Any) -> None:
            async with asyncio.timeout(SLOW):
                await send(message)

        try:
            with contextlib.suppress(TimeoutError):
                await super().__call__(scope, receive, send_in_time)
        finally:
            self._listening.close()


def sse(data: str, event: str = "") -> str:
    r"""One server-sent event.

    >>> sse("a\nb", "end")
    'event: end\ndata: a\ndata: b\n\n'
    """
    named = f"event: {event}\n" if event else ""
    return named + "".join(f"data: {line}\n" for line in data.replace("\r", "\n").split("\n")) + "\n"
