"""A rank's line to the process that started it: one socket, over which a rank says how it ended.

The parent prints one message for all ranks, so a rank tells it instead of printing. When the parent goes away the
socket ends, and the rank with it: none trains on as an orphan. Only the standard library, for it is opened first.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from typing import Literal

VARIABLE = "ESPALIER_PARENT"
"""Holds the number of the socket; only `launch` sets it."""

Kind = Literal["error", "stopped", "bug"]


class Parent:
    """The open line.

    Args:
        line: a connected socket of this process.
    """

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        threading.Thread(target=self._watch, daemon=True).start()

    def tell(self, kind: Kind, text: str) -> None:
        """How this rank ends: a user's error, a stop after a signal, or a bug with its traceback."""
        self._line.sendall(json.dumps({"kind": kind, "text": text}).encode() + b"\n")

    def _watch(self) -> None:
        """Nothing is ever sent this way, so that whatever is read is the end. The threads of the collectives wait
        without Python's lock, and this one runs while they do."""
        with contextlib.suppress(OSError):
            self._line.recv(1)
        os.kill(os.getpid(), signal.SIGKILL)


def connected() -> Parent | None:
    """The line to the parent, if it has left one; asked once, for the processes that this one starts have none."""
    number = os.environ.pop(VARIABLE, None)
    if number is None:
        return None
    os.set_inheritable(int(number), False)
    return Parent(socket.socket(fileno=int(number)))


def has_the_word() -> bool:
    """Whether this rank should print an error itself, where no parent of ours listens.

    Under another launcher the first rank that fails takes the word, in the store that all ranks share; before they
    have met, all of them meet the same error, and rank 0 speaks.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return os.environ.get("RANK", "0") == "0"
    try:
        store = distributed.distributed_c10d._get_default_store()
        return bool(store.add("espalier/error", 1) == 1)
    except RuntimeError:  # the process that holds the store is gone
        return True
