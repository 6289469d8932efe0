"""Who may ask, how large a request may be, and how long it may take to come: before anything is parsed."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from espalier.serve.http.errors import Refusal
from espalier.serve.http.metrics import Metrics

OPEN = ("/health",)
"""Asked by load balancers, which have no key."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class HttpLimits:
    """What a server takes.

    Attributes:
        keys: one of them must be given as a bearer token; none: anybody may ask.
        body: bytes of a request at most.
        upload: seconds in which a request's body must have come.
        only_loopback: whether requests for another host's name are refused, as a web page elsewhere may send them
            through the user's own browser.
        rate: requests a minute of one key or address; 0: any number.
    """

    keys: tuple[str, ...] = ()
    body: int = 4 << 20
    upload: float = 30.0
    only_loopback: bool = False
    rate: int = 0


class Gate:
    """ASGI middleware around the routes; counts responses too.

    Args:
        app: the routes.
        limits: see `HttpLimits`.
        metrics: where responses are counted.
        routes: the paths that are told apart in them; others are one.
    """

    def __init__(self, app: Any, limits: HttpLimits, metrics: Metrics, routes: Collection[str]) -> None:
        self._app, self._limits, self._metrics, self._routes = app, limits, metrics, routes
        self._since: dict[str, tuple[float, float]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, route = time.monotonic(), scope["path"] if scope["path"] in self._routes else "other"
        told = {"status": 0, "first": False}

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                told["status"] = message["status"]
            elif message.get("body") and not told["first"]:
                told["first"] = True
                self._metrics.first.labels(route).observe(time.monotonic() - began)
            await send(message)

        try:
            await self._let_in(scope, receive, counted)
        finally:
            self._metrics.responses.labels(route, str(told["status"])).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - began)

    async def _let_in(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            headers = {
                name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
            }
            self._check(scope, headers)
            body = await self._body(receive, headers)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
            return
        given = False

        async def again() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    def _check(self, scope: Any, headers: dict[str, str]) -> None:
        limits, path = self._limits, scope["path"]
        if limits.only_loopback and _host(headers.get("host", "")) not in LOOPBACK:
            raise Refusal(403, "this server answers to 127.0.0.1 and localhost only. Start it with --host.")
        key = ""
        if limits.keys and path not in OPEN and scope["method"] != "OPTIONS":
            scheme, _, key = headers.get("authorization", "").partition(" ")
            sound = [hmac.compare_digest(key.strip().encode(), known.encode()) for known in limits.keys]
            if scheme.lower() != "bearer" or not any(sound):
                raise Refusal(
                    401,
                    "no key, or an unknown one. Send `Authorization: Bearer KEY`.",
                    code="invalid_api_key",
                )
        if limits.rate and path not in OPEN and scope["method"] == "POST":
            self._count(key or (scope.get("client") or ("",))[0])

    def _count(self, who: str) -> None:
        """A bucket that fills at the rate, and holds what may be asked at once."""
        now, rate = time.monotonic(), self._limits.rate / 60
        left, at = self._since.get(who, (float(self._limits.rate), now))
        left = min(float(self._limits.rate), left + (now - at) * rate)
        if left < 1:
            raise Refusal(
                429,
                f"more than {self._limits.rate} requests a minute.",
                code="rate_limit",
                again=(1 - left) / rate,
            )
        if len(self._since) > 10_000:  # who has asked nothing for a minute has a full bucket again
            self._since = {name: entry for name, entry in self._since.items() if now - entry[1] < 60}
        self._since[who] = left - 1, now

    async def _body(self, receive: Any, headers: dict[str, str]) -> bytes:
        most = self._limits.body
        too_large = Refusal(413, f"the request has more than {most} bytes, the most that is taken here.")
        if headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")) > most:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.upload):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the request was given up before it had come.")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, f"the request had not come after {self._limits.upload:g} s.") from None


def _host(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
