"""SIGINT and SIGTERM ask for a checkpoint and an orderly end; a second one ends at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopSignal:
    """A flag that SIGINT and SIGTERM raise while the block is open.

    Outside the main thread (a notebook's worker, a server) no handler can be set, and the flag stays down.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._raise)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _raise(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            signal.signal(number, self._before.get(number, signal.SIG_DFL))
            signal.raise_signal(number)
        self.asked = True
