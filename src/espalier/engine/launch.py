"""From one process to several: this run again, once for each device, watched over by this process.

The ranks are started here and not by torchrun, so that a signal reaches them and is waited for, an error that all of
them meet is said once, and the exit code is the run's own. torchrun and accelerate still start Espalier as any program.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import IO

from espalier.engine.parent import VARIABLE
from espalier.engine.signals import TOGETHER, Ended, handling
from espalier.errors import Stopped, UserError
from espalier.screen import safe

GRACE = 30.0
"""Seconds that the other ranks get to end by themselves once one was stopped: they write the same checkpoint."""

GRACE_OF_DEATH = 8.0
"""The same once one has died or met an error, so that each can say what it has met. On a CPU their next exchange fails
at once, but one between GPUs may wait for ever."""

_POLL = 0.05
_STOPPED = 3
"""The exit code after a signal and a checkpoint."""


def rank() -> int:
    """Which of the processes of this run this one is, as its launcher says; known before anything is set up."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes this run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_wanted(strategy: str, num_processes: int) -> int:
    """How many processes a run should have; 1 when it is already one of several.

    Args:
        strategy: "auto" takes every GPU of this machine; "single" is always one.
        num_processes: the user's number; 0 leaves it to the strategy.
    """
    if "LOCAL_RANK" in os.environ:
        return 1
    if strategy == "single":
        if num_processes > 1:
            raise UserError(f"strategy: single is one process, but num_processes is {num_processes}.")
        return 1
    if num_processes:
        return num_processes
    import torch

    return max(1, torch.cuda.device_count())


def relaunch(arguments: list[str], processes: int) -> int:
    """Run ``espalier ARGUMENTS`` in so many processes on this machine; see `watch_over`.

    Several machines: start `torchrun` yourself with ``-m espalier.cli`` (docs/scaling.md).
    """
    return as_ranks([sys.executable, "-m", "espalier.cli", *arguments], processes)


def as_ranks(command: Sequence[str], processes: int) -> int:
    """Run a command as so many ranks that meet on this machine; see `watch_over`."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__

    # Where the ranks meet is held by this process, so that no free port must be guessed.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")
        or str(max(1, (os.cpu_count() or 1) // processes)),
    }
    return watch_over(command, processes, meeting)


def watch_over(command: Sequence[str], processes: int, environment: Mapping[str, str]) -> int:
    """Run a command as so many ranks, forward signals to them, and wait for all.

    The first rank writes where this process does; what the others write stands behind ``[rank N]`` on stderr.

    Returns:
        0; or 1 where a rank met a bug or died, which is said on stderr.

    Raises:
        UserError, Stopped: what the first rank that ended so has said.
        Ended: a second signal came, and all ranks were ended at once.
    """
    forwarding, deadline = _Forwarding(), float("inf")
    with handling(forwarding):
        ranks = forwarding.ranks
        for number in range(processes):
            ranks.append(_Rank(number, command, processes, environment))
        while any(rank.code() is None for rank in ranks):
            time.sleep(_POLL)
            if ended := [rank.code() for rank in ranks if rank.code()]:
                grace = GRACE if all(code == _STOPPED for code in ended) else GRACE_OF_DEATH
                deadline = min(deadline, time.monotonic() + grace)
            if forwarding.again or time.monotonic() > deadline:
                for rank in ranks:
                    rank.kill()
    for rank in ranks:
        rank.close()
    if forwarding.again:
        assert forwarding.number is not None
        raise Ended(forwarding.number, again=True)
    return _verdict(ranks, forwarding.number)


def _verdict(ranks: Sequence[_Rank], forwarded: int | None) -> int:
    """One ending for all. A rank that loses the others in the middle of an exchange meets an error of its own, so what
    a rank has met by itself comes first: a user's error, a death, a stop; then a bug."""
    reports = sorted((told for rank in ranks for told in rank.told), key=lambda told: told[0])
    by_kind = {kind: (rank, text) for _, rank, kind, text in reversed(reports)}
    dead = [rank for rank in ranks if (rank.code() or 0) < 0 and not rank.killed]
    if "error" in by_kind:
        raise UserError(by_kind["error"][1])
    if "stopped" in by_kind:
        raise Stopped(by_kind["stopped"][1])
    if dead and forwarded is not None and all(-(rank.code() or 0) == forwarded for rank in dead):
        raise Stopped("stopped before it began; run the same command again.")
    if dead:
        _say("\n".join(_death(rank) for rank in dead))
        return 1
    if "bug" in by_kind:
        rank, text = by_kind["bug"]
        _say(f"{text.rstrip()}\n(in rank {rank} of {len(ranks)})")
        return 1
    return max(abs(rank.code() or 0) for rank in ranks)


def _death(rank: _Rank) -> str:
    name = signal.Signals(-(rank.code() or 0)).name
    why = " Often the machine is out of memory: see `dmesg`." if name == "SIGKILL" else ""
    return (
        f"rank {rank.number} (process {rank.process.pid}) was ended by {name}, and the other ranks with it.{why} "
        "The last checkpoint is kept; the same command goes on from it."
    )


def _say(text: str) -> None:
    print(safe(text), file=sys.stderr, flush=True)


class _Rank:
    """One process, and what it has said about its end as (time, rank, kind, text)."""

    def __init__(
        self, number: int, command: Sequence[str], world: int, environment: Mapping[str, str]
    ) -> None:
        self.number, self.killed = number, False
        self.told: list[tuple[float, int, str, str]] = []
        self._line, theirs = socket.socketpair()
        own = {
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            VARIABLE: str(theirs.fileno()),
        }
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **environment, **own},
            stdin=subprocess.DEVNULL,
            stdout=None if number == 0 else subprocess.PIPE,
            stderr=None if number == 0 else subprocess.STDOUT,
            pass_fds=(theirs.fileno(),),
            process_group=0,  # a terminal's Ctrl-C comes here only, and is forwarded once
        )
        theirs.close()
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        if self.process.stdout is not None:
            self._threads.append(
                threading.Thread(target=_prefixed, args=(self.process.stdout, number), daemon=True)
            )
        for thread in self._threads:
            thread.start()

    def code(self) -> int | None:
        return self.process.poll()

    def send(self, number: int) -> None:
        if self.code() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        if self.code() is None:
            self.killed = True
            self.process.kill()

    def close(self) -> None:
        """Read the rest of what it wrote. A process that it left behind may hold the pipe: no wait is for ever."""
        for thread in self._threads:
            thread.join(timeout=2)
        self._line.close()

    def _listen(self) -> None:
        with self._line.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                told = json.loads(line)
                self.told.append((time.monotonic(), self.number, told["kind"], told["text"]))


def _prefixed(stream: IO[bytes], number: int) -> None:
    for line in stream:
        sys.stderr.write(f"[rank {number}] {line.decode('utf-8', 'replace')}")
        sys.stderr.flush()


class _Forwarding:
    """What a signal means here: it goes to all ranks, and a second one, a moment later, is the end of them.

    Attributes:
        number: of the first signal, or None.
        again: whether a second one came.
    """

    def __init__(self) -> None:
        self.ranks: list[_Rank] = []
        self.number: int | None = None
        self.again, self._since = False, 0.0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.number is not None:
            self.again = self.again or time.monotonic() - self._since > TOGETHER
            return
        self.number, self._since = number, time.monotonic()
        for rank in self.ranks:
            rank.send(number)
