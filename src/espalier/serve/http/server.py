"""The process that serves: sockets, signals, and an end in which nobody who was let in is left without an answer."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn

from espalier.engine.signals import Ended
from espalier.errors import UserError
from espalier.serve.http.app import Served, make_app

CONNECTIONS = 1000
"""Open at a time; one more is answered with 503."""

SWITCH = 0.0005
"""Seconds after which Python hands over to the thread that waits: the engine asks for its turn after each product."""


def run_server(served: Served, host: str, port: int, grace: float, say: Callable[[str], None]) -> None:
    """Answer OpenAI's API (`run_app`)."""
    run_app(make_app(served), served, (host, port), grace, lambda url: say(f"{url}/v1"))


def run_app(
    app: Any, served: Served, address: tuple[str, int], grace: float, say: Callable[[str], None]
) -> None:
    """Answer until a signal comes; then let nobody in any more, and end when those inside have their answers.

    Args:
        app: an ASGI program.
        served: whose models are closed at the end.
        address: host and port; port 0 takes a free one.
        grace: seconds that answers may take after the signal.
        say: told where it listens, without a slash at the end.

    Raises:
        UserError: the address cannot be had.
    """
    host, port = address
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=max(1, round(grace)),
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        server_header=False,
        lifespan="off",
    )
    listening = _listen(host, port)
    name = f"[{host}]" if ":" in host else host
    say(f"http://{name}:{listening.getsockname()[1]}")
    server = uvicorn.Server(config)
    sys.setswitchinterval(SWITCH)
    try:
        server.run([listening])
    except Ended:  # uvicorn raises the signal once more when all is done
        pass
    finally:
        for model in served.models.values():
            model.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(1024)
    except OSError as error:
        made.close()
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}). Take another port, or 0 for "
            "a free one."
        ) from None
    return made
