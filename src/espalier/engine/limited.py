"""Calls in a process of its own, each with a time limit: for what may never come back, or take the process with it.

A time limit inside one process cannot end a product of huge numbers, and a library that waits in C answers no signal;
a process can be killed. The other side is a fresh interpreter that speaks over pipes in lines of JSON, so that nothing
of this process's threads, locks or GPU is copied into it, and that imports only what its calls need. It ends with
this process, also where this one is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import IO, Any

from espalier.engine.signals import handling, stop_asked
from espalier.errors import Stopped

STARTING = 60.0
"""Seconds that the interpreter and the imports of a target may take; a busy disk needs a few."""

_GLANCE = 0.1


class TimedOut(Exception):
    """A call has not come back; its process was ended, and the next call starts another one."""


class Died(Exception):
    """The process ended in the middle of a call, by itself or by its memory limit."""


class Limited:
    """A function in a process of its own, started at the first call and kept.

    Args:
        target: ``MODULE:FUNCTION``, imported over there; arguments and result go through JSON.
        memory: the most bytes of address space, on top of which it gets a MemoryError; None: no limit.
    """

    def __init__(self, target: str, *, memory: int | None = None) -> None:
        self._target, self._memory = target, memory
        self._process: _Process | None = None

    def call(
        self, *arguments: Any, seconds: float, waiting: Callable[[float], None] = lambda passed: None
    ) -> Any:
        """The function's result.

        Args:
            seconds: the time limit.
            waiting: told now and then how many seconds have passed.

        Raises:
            TimedOut, Died: no result.
            Stopped: a signal has asked for the end of the run meanwhile.
            RuntimeError: the function raised; with the traceback from over there.
        """
        if self._process is None:
            self._process = _Process(self._target, self._memory)
            self._answer(STARTING, lambda passed: None)
        self._process.send(arguments)
        answer = self._answer(seconds, waiting)
        if "raised" in answer:
            raise RuntimeError(answer["raised"])
        return answer["result"]

    def close(self) -> None:
        """End the process; a further call starts another one."""
        if self._process is not None:
            self._process.end()
        self._process = None

    def _answer(self, seconds: float, waiting: Callable[[float], None]) -> dict[str, Any]:
        assert self._process is not None
        begun = time.monotonic()
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    answer = self._process.lines.get(timeout=_GLANCE)
                    if answer is None:
                        raise Died(f"{self._target} ended with {self._process.code()}")
                    reply: dict[str, Any] = json.loads(answer)
                    return reply
                passed = time.monotonic() - begun
                if passed > seconds:
                    raise TimedOut(f"{self._target} took more than {seconds:g} s")
                if stop_asked():
                    raise Stopped(f"stopped while {self._target} was at work; run the same command again")
                waiting(passed)
        except BaseException:
            self.close()
            raise


class _Process:
    """The other side's process, and the lines that it has written; None after the last one."""

    def __init__(self, target: str, memory: int | None) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        arguments = [target, str(os.getpid()), str(memory or 0)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "espalier.engine.limited", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            process_group=0,
            text=True,
            encoding="utf-8",
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(self._process.stdout, self.lines), daemon=True).start()
        self.end = weakref.finalize(self, _end, self._process)  # also when nobody wants it any more

    def send(self, arguments: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is gone, which is found where an answer is waited for
            self._process.stdin.write(json.dumps(arguments) + "\n")
            self._process.stdin.flush()

    def code(self) -> int:
        return self._process.wait()


def _end(process: subprocess.Popen[str]) -> None:
    """The process, with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with contextlib.suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]


def _read(lines: IO[str], into: queue.Queue[str | None]) -> None:
    with lines:
        for line in lines:
            into.put(line)
    into.put(None)


# --- the other side ---------------------------------------------------------------------------------


def main(target: str, parent: int, memory: int) -> None:
    """Serve calls of `target` until the pipe ends."""
    _end_with(parent)
    if memory:
        with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has such a limit
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # Whoever asked decides what a signal means. A handler and not SIG_IGN, which what is started here would inherit.
    with handling(lambda number, frame: None):
        asked, answers = _own_pipes()
        module, _, name = target.partition(":")
        function = getattr(importlib.import_module(module), name)
        _tell(answers, {"result": None})
        own = os.getpid()
        for arguments in _calls(asked):
            try:
                answer = {"result": function(*arguments)}
            except Exception:
                answer = {"raised": traceback.format_exc()}
            if os.getpid() != own:  # the function has forked, and this is the child, whom nobody has asked
                os._exit(0)
            _tell(answers, answer)


def _own_pipes() -> tuple[IO[str], IO[str]]:
    """The pipes for calls and answers, where nothing that a function starts or does finds them: what it prints goes to
    stderr, what it reads from stdin is empty, and a forked child holds no end of the answers."""
    asked = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    os.register_at_fork(after_in_child=lambda: os.close(answers.fileno()))
    return asked, answers


def _tell(answers: Any, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _calls(pipe: IO[str]) -> Iterator[list[Any]]:
    """What is asked, read by a thread: the end of the pipe is the end of this process, whatever it is doing."""
    asked: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in pipe:
            asked.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(asked.get())


def _end_with(parent: int) -> None:
    """On Linux the kernel ends this process with its parent, also in the middle of a call that lets no thread run."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
