"""One owner at a time: a second start is told who has a place, whatever process it is in, and the dead have nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from espalier.disk.lock import owned
from espalier.errors import UserError


def own(folder: Path, **how: Any) -> Any:
    return owned(folder / ".lock", folder, "choose another output_dir", **how)


def forked(folder: Path, ready: int) -> int:
    """A child that owns the folder until it is killed; it writes a byte when it does."""
    child = os.fork()
    if not child:
        try:
            with own(folder):
                os.write(ready, b"x")
                signal.pause()
        finally:
            os._exit(1)
    return child


def test_a_second_start_is_told_who_writes_and_a_dead_owner_has_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    reading, writing = os.pipe()
    child = forked(folder, writing)
    try:
        assert os.read(reading, 1) == b"x"
        said = rf"run: process {child} on {socket.gethostname()} \(since .*\) writes here.*another output_dir"
        with pytest.raises(UserError, match=said), own(folder):
            pass
        with pytest.raises(UserError, match=said), own(folder):
            pytest.fail("a refused start has not taken the lock away")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert (folder / ".lock").is_file(), "SIGKILL leaves the file"
    with own(folder):
        assert json.loads((folder / ".lock").read_text())["process"] == os.getpid()
    assert not list(folder.iterdir())


def test_a_second_start_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with own(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"), own(tmp_path):
        pass
    with own(tmp_path):
        pass


def test_many_starts_and_never_two_owners(tmp_path: Path) -> None:
    inside, most, served = [0], [0], []
    guard = threading.Lock()

    def start() -> None:
        for _ in range(60):
            try:
                with own(tmp_path):
                    with guard:
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                    served.append(1)
                    with guard:
                        inside[0] -= 1
            except UserError:
                pass

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and served


def test_a_text_that_nobody_can_read_says_less_and_holds(tmp_path: Path) -> None:
    for text in ("", "hello", "[]", "{}"):
        with own(tmp_path):
            (tmp_path / ".lock").write_text(text)
            with pytest.raises(UserError, match="another process writes here"), own(tmp_path):
                pass


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    told: list[str] = []
    with own(tmp_path, say=told.append):
        assert "has no locks" in told[0]


def test_a_place_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="run: could not be written"), own(tmp_path / "file" / "run"):
        pass
