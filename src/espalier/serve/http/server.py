"""The process that serves: sockets, signals, and an end in which nobody who was let in is left without an answer."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

import uvicorn

from espalier.engine.signals import Ended
from espalier.errors import UserError
from espalier.serve.http.app import Served, make_app

CONNECTIONS = 1000
"""Open at a time; one more is answered with 503."""

SWITCH = 0.0005
"""Seconds after which Python hands over to the thread that waits: the engine asks for its turn after each product."""


def run_server(served: Served, host: str, port: int, grace: float, say: Callable[[str], None]) -> None:
    """Answer until a signal comes; then let nobody in any more, and end when those inside have their answers.

    Args:
        served: what is asked.
        host, port: where; port 0 takes a free one.
        grace: seconds that answers may take after the signal.
        say: told where it listens.

    Raises:
        UserError: the address cannot be had.
    """
    config = uvicorn.Config(
        make_app(served),
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
    say(f"http://{name}:{listening.getsockname()[1]}/v1")
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
