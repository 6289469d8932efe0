"""One process makes a store while others wait; a killed one leaves nothing that is used, and is taken over."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from espalier.data.read.specs import parse_specs
from espalier.data.store import lock
from espalier.data.store.open import ReadSettings, opened
from espalier.data.store.stack import Choice, stored
from tests import processes
from tests.data.store.helpers import CHATS, job, said, tokenizer_of, write

PROGRAM = """
import sys, time
from pathlib import Path
from espalier.data.read.specs import parse_specs
from espalier.data.store import build
from espalier.data.store.open import ReadSettings, opened
from tests import processes
from tests.data.store.helpers import job, tokenizer_of

path, folder, pause = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
real = build.work

def slow(*args, **options):
    print("works", flush=True)
    time.sleep(pause)
    return real(*args, **options)

build.work = slow
wanted = job("chat", tokenizer_of(), cutoff_len=512)
stack, _, _ = opened(parse_specs(path), wanted, ReadSettings(folder, show=lambda text: print(text, flush=True)))
print("has", stack.records, flush=True)
"""


def start(path: str, folder: Path, pause: float) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path.cwd())])}
    command = [sys.executable, "-c", PROGRAM, path, str(folder), str(pause)]
    return processes.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_tokenise_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", CHATS)
    both = [start(path, tmp_path / "kept", 0.5) for _ in range(2)]
    told = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all("has 60" in text for text in told)
    assert sum(text.count("works") for text in told) == 1
    assert [entry.name for entry in (tmp_path / "kept").iterdir() if entry.is_dir()] != []
    assert not list((tmp_path / "kept").glob("*.lock.*"))


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_to_use_and_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "GONE", 0.5)
    path, folder = write(tmp_path / "a.jsonl", CHATS), tmp_path / "kept"
    killed = start(path, folder, 60.0)
    assert killed.stdout is not None and killed.stdout.readline() == "works\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    left = sorted(entry.name for entry in folder.iterdir())
    assert any(name.endswith(".tmp") for name in left) and any(".lock." in name for name in left)
    wanted = job("chat", tokenizer_of(), cutoff_len=512)
    told: list[str] = []
    stack, _, _ = opened(parse_specs(path), wanted, ReadSettings(folder, show=told.append))
    fresh, _, _ = opened(parse_specs(path), wanted, ReadSettings(tmp_path / "other"))
    assert [said(t) for t in stored(Choice(stack))] == [said(t) for t in stored(Choice(fresh))]
    assert f"waiting for process {killed.pid}" in told[0]
    assert not [entry.name for entry in folder.iterdir() if ".lock." in entry.name or ".tmp" in entry.name]


def held(path: Path, **how: Any) -> Any:
    options: dict[str, Any] = {"done": lambda: False, "waiting": lambda who: None, "doing": lambda: "works"}
    return lock.held(path, **{**options, **how})


def test_many_contenders_and_never_two_owners(tmp_path: Path) -> None:
    inside, most, turns = [0], [0], []
    guard = threading.Lock()

    def contend(number: int) -> None:
        with held(tmp_path / "x"):
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            turns.append(number)
            with guard:
                inside[0] -= 1

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and sorted(turns) == list(range(8)) and not list(tmp_path.iterdir())


def test_a_dead_owner_is_taken_over_by_one_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "GONE", 0.3)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    owner = {"host": socket.gethostname(), "process": gone.pid, "doing": "worked", "at": 0}
    (tmp_path / "x.lock.0").write_text(json.dumps(owner))
    owners = []

    def contend() -> None:
        with held(tmp_path / "x", done=lambda: bool(owners)) as mine:
            if mine:
                time.sleep(0.2)
                owners.append(1)

    threads = [threading.Thread(target=contend) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert owners == [1] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "hello", "[]", "{}", '{"host": 1, "process": "x", "doing": "y"}'])
def test_a_lock_that_nobody_can_read_is_taken_over(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "GONE", 0.2)
    (tmp_path / "x.lock.0").write_text(text)
    told: list[str] = []
    with held(tmp_path / "x", waiting=told.append) as mine:
        assert mine and told == ["another process"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_living_owner_is_waited_for_and_a_silent_one_on_another_machine_is_not_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "GONE", 0.1)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "SILENT", 1.0)
    order = []

    def long() -> None:
        with held(tmp_path / "x"):
            time.sleep(1.5)  # longer than SILENT, and not silent
            order.append("first")

    first = threading.Thread(target=long)
    first.start()
    time.sleep(0.2)
    with held(tmp_path / "x"):
        order.append("second")
    first.join()
    assert order == ["first", "second"]
    foreign = {"host": "elsewhere", "process": 1, "doing": "worked", "at": 0}
    (tmp_path / "x.lock.3").write_text(json.dumps(foreign))
    began = time.monotonic()
    with held(tmp_path / "x") as mine:
        assert mine and 0.9 < time.monotonic() - began < 3
