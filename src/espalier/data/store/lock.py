"""One process works, the others wait and can see who works; an owner that died is taken over.

A lock is a file `NAME.lock.N`, made so that only one process can make it. Its owner touches it once a second. Who sees
it untouched for too long makes the next one, `NAME.lock.N+1`, again as the only one, and is the owner from then on.
Nothing is ever removed from under a living owner, so two contenders cannot both win, on network disks too. An owner
that was only asleep finds a later lock and knows that it has lost; its work must therefore be put into place by a
rename that harms nobody when it happens twice.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from espalier.disk.temporary import is_alive
from espalier.errors import UserError

BEAT = 1.0
"""Seconds between two touches."""
GONE = 5.0
"""Seconds without a touch after which an owner on this machine that has no process any more is taken over."""
SILENT = 120.0
"""Seconds without a touch after which any owner is taken over."""


@contextmanager
def held(
    path: Path, *, done: Callable[[], bool], waiting: Callable[[str], None], doing: Callable[[], str]
) -> Iterator[bool]:
    """True inside when this process owns the lock, False when `done` came true while it waited.

    Args:
        path: the lock's name without its number; its folder exists.
        waiting: told once in a while who works, as "process 17 on HOST, DOING".
        doing: what the owner tells the others about its work.

    Raises:
        UserError: the folder cannot be written to.
    """
    number = _acquired(path, done, waiting)
    if number is None:
        yield False
        return
    own = _file(path, number)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):
                if own.exists():
                    _tell(own, doing())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield not done()
    finally:
        ended.set()
        thread.join()
        for earlier in range(number, -1, -1):
            _file(path, earlier).unlink(missing_ok=True)


def _acquired(path: Path, done: Callable[[], bool], waiting: Callable[[str], None]) -> int | None:
    """The number of the lock that this process has made; None when there is nothing to do any more."""
    seen, since, told = "", time.monotonic(), 0.0
    while not done():
        newest = _newest(path)
        if newest is None:
            if _made(_file(path, 0)):
                return 0
            continue
        state = _state(_file(path, newest))
        now = time.monotonic()
        if f"{newest} {state}" != seen:
            seen, since = f"{newest} {state}", now
        silent = now - since
        if silent > SILENT or (silent > GONE and _has_died(state)):
            if _made(_file(path, newest + 1)):
                return newest + 1
            continue
        if now - told > 10:
            told = now
            waiting(_said(state))
        time.sleep(0.05 if silent < 1 else 0.3)
    return None


def _newest(path: Path) -> int | None:
    pattern = re.compile(re.escape(path.name) + r"\.lock\.(\d+)")
    numbers = [int(match[1]) for file in path.parent.iterdir() if (match := pattern.fullmatch(file.name))]
    return max(numbers, default=None)


def _file(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.lock.{number}")


def _made(file: Path) -> bool:
    """Whether this process has made the file, and so owns it."""
    try:
        with file.open("x", encoding="utf-8"):
            pass
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(
            f"{file.parent}: cannot be written to ({error}); tokenised data is kept there. Choose another folder with "
            "`tokenized_path`"
        ) from None
    _tell(file, "begins")
    return True


def _tell(file: Path, doing: str) -> None:
    """Who works, and when it was alive last."""
    owner = {"host": socket.gethostname(), "process": os.getpid(), "doing": doing, "at": time.time()}
    with file.open("r+", encoding="utf-8") as stream:
        stream.write(json.dumps(owner) + "\n")
        stream.truncate()


def _state(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError:
        return ""


def _has_died(state: str) -> bool:
    """Whether the owner ran on this machine and has no process now; an owner that died while it began is unknown."""
    owner = _owner(state)
    if owner is None:
        return True
    return owner["host"] == socket.gethostname() and not is_alive(owner["process"])


def _owner(state: str) -> dict[str, Any] | None:
    """What an owner has told of itself; None where it had no time to, or something else wrote the file."""
    try:
        owner = json.loads(state)
    except ValueError:
        return None
    whole = (
        isinstance(owner, dict)
        and isinstance(owner.get("process"), int)
        and {"host", "doing"} <= owner.keys()
    )
    return owner if whole else None


def _said(state: str) -> str:
    owner = _owner(state)
    if owner is None:
        return "another process"
    return f"process {owner['process']} on {owner['host']}, {owner['doing']}"
