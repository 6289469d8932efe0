"""SIGINT, SIGTERM and SIGHUP ask for a checkpoint and an orderly end; a second one ends at once.

Outside the main thread (a notebook's worker, a server) no handler can be set, and nothing is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What a terminal, a cluster's scheduler and a lost connection send."""

TOGETHER = 0.2
"""Seconds within which two signals are one: `timeout` and some schedulers send it to a process and to its group."""

Handler = Callable[[int, FrameType | None], None]

_open: list[StopSignal] = []
_ours: list[Handler] = []
"""The handlers that were set and not put back yet."""

_mask = threading.local()


class Ended(KeyboardInterrupt):
    """A signal that came where nothing is saved: before the first step, or for the second time.

    Attributes:
        number: of the signal.
        again: whether it was the second one, so that steps since the last checkpoint are lost.
    """

    def __init__(self, number: int, *, again: bool = False) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.again = number, again


class StopSignal:
    """A flag that the first of `ENDING` raises while the block is open; a second signal is for who came before."""

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self._before = _handle(self._raise)
        _open.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _open.remove(self)
        _put_back(self._before)

    def _raise(self, number: int, _frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._since = True, time.monotonic()
        elif time.monotonic() - self._since > TOGETHER:
            signal.signal(number, self._before.get(number, signal.SIG_DFL))
            signal.raise_signal(number)


def stop_asked() -> bool:
    """Whether a signal has asked for the end of what is running; for those that wait for something else."""
    return any(stop.asked for stop in _open)


@contextlib.contextmanager
def raising() -> Iterator[list[Ended]]:
    """Inside, each of `ENDING` raises `Ended`, as Ctrl-C does: files are closed, children ended, folders removed.

    Yields what was raised so far, for a library between may turn it into something else.
    """
    raised: list[Ended] = []

    def ended(number: int, _frame: FrameType | None) -> None:
        raised.append(Ended(number, again=stop_asked()))
        raise raised[-1]

    with handling(ended):
        yield raised


@contextlib.contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """Inside, `ENDING` goes to the handler."""
    before = _handle(handler)
    try:
        yield
    finally:
        _put_back(before)


def _handle(handler: Handler) -> dict[int, Any]:
    """Set the handler; returns those that stood there. `nohup` has SIGHUP ignored, and so it stays."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    wanted = [n for n in ENDING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    _ours.append(handler)
    return {number: signal.signal(number, handler) for number in wanted}


def _put_back(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if before:
        _ours.pop()


# --- a process that is forked off -------------------------------------------------------------------
#
# A pool ends its workers with SIGTERM and waits for them: for ever, where they have inherited a handler that only takes
# note. The signals of a terminal reach all its processes at once, and what those mean is for the first of them to say.
# A signal that comes between the fork and the first line in Python is forgotten by the interpreter, so it is held back.


def _before_fork() -> None:
    if _ours:
        _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _forked(*, child: bool) -> None:
    before = _mask.__dict__.pop("before", None)
    if before is not None:
        if child and signal.getsignal(signal.SIGTERM) in _ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


os.register_at_fork(
    before=_before_fork,
    after_in_child=functools.partial(_forked, child=True),
    after_in_parent=functools.partial(_forked, child=False),
)
