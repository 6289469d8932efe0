"""Calls with a time limit: what comes back, what does not, and what is left of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from espalier.engine.limited import Died, Limited, TimedOut
from espalier.engine.signals import StopSignal
from espalier.errors import Stopped


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A function over there: `work(what, value)`."""
    (tmp_path / "elsewhere.py").write_text(
        "import os, sys, time\n"
        "def work(what, value):\n"
        "    print('noise on stdout')\n"
        "    if what == 'pid': return os.getpid()\n"
        "    if what == 'twice': return 2 * value\n"
        "    if what == 'sleep': time.sleep(value)\n"
        "    if what == 'power': return len(str(9 ** 9 ** value)[:1])\n"
        "    if what == 'memory': return len(bytearray(value))\n"
        "    if what == 'die': os._exit(7)\n"
        "    raise ValueError('no such work')\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "elsewhere:work"


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_results_come_back_errors_too_and_one_process_serves(target: str) -> None:
    child = Limited(target, memory=2 << 30)
    pid = child.call("pid", 0, seconds=10)
    assert pid != os.getpid()
    assert child.call("twice", "汉\ud800", seconds=10) == "汉\ud800汉\ud800"
    with pytest.raises(RuntimeError, match=r"elsewhere\.py.*\n.*(\n.*)*ValueError: no such work"):
        child.call("nothing", 0, seconds=10)
    with pytest.raises(RuntimeError, match="MemoryError"):
        child.call("memory", 4 << 30, seconds=10)
    assert child.call("pid", 0, seconds=10) == pid, "one process serves all calls"
    del child
    assert gone(pid), "nobody wants it any more"


@pytest.mark.slow
@pytest.mark.parametrize(("what", "value"), [("sleep", 1000), ("power", 9)])
def test_what_does_not_come_back_is_ended_and_the_next_call_works(target: str, what: str, value: int) -> None:
    child, seen = Limited(target), list[float]()
    pid, begun = child.call("pid", 0, seconds=10), time.monotonic()
    with pytest.raises(TimedOut, match=r"elsewhere:work took more than 0\.5 s"):
        child.call(what, value, seconds=0.5, waiting=seen.append)
    assert time.monotonic() - begun < 3 and gone(pid) and seen == sorted(seen) and seen
    with pytest.raises(Died, match="ended with 7"):
        child.call("die", 0, seconds=10)
    assert child.call("twice", 4, seconds=10) == 8


def test_what_a_function_starts_cannot_answer_in_its_place_nor_read_what_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that forks off returns out of the function too, and its answer would be taken for the next one's."""
    (tmp_path / "starting.py").write_text(
        "import multiprocessing, os, subprocess, sys, time\n"
        "def work(what, value):\n"
        "    if what == 'fork':\n"
        "        child = os.fork()\n"
        "        if child == 0: return 'of the child'\n"
        "        os.waitpid(child, 0)\n"
        "    if what == 'fork and die' and os.fork() == 0: time.sleep(1000)\n"
        "    if what == 'fork and die': os._exit(7)\n"
        "    if what == 'pool':\n"
        "        with multiprocessing.get_context('fork').Pool(2) as pool: return pool.map(abs, [-value, value])\n"
        "    if what == 'cat': return subprocess.run(['cat'], capture_output=True, text=True, timeout=5).stdout\n"
        "    if what == 'input': return sys.stdin.read()\n"
        "    if what == 'fork and end':\n"
        "        child = os.fork()\n"
        "        if child == 0: time.sleep(1000)\n"
        "        os.kill(child, 15)\n"
        "        return os.WTERMSIG(os.waitpid(child, 0)[1])\n"
        "    return value\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    child = Limited("starting:work")
    assert [child.call("fork", n, seconds=10) for n in range(3)] == [0, 1, 2]
    assert child.call("pool", 3, seconds=60) == [3, 3]
    assert child.call("fork and end", 0, seconds=60) == signal.SIGTERM, (
        "a pool ends its workers so, and waits"
    )
    assert [child.call(what, 0, seconds=10) for what in ("cat", "input")] == ["", ""]
    begun = time.monotonic()
    with pytest.raises(Died, match="ended with 7"):
        child.call("fork and die", 0, seconds=30)
    assert time.monotonic() - begun < 10, "its own child does not hold the pipe open"


def test_a_stop_that_is_asked_for_is_not_waited_out(target: str) -> None:
    child = Limited(target)
    child.call("twice", 1, seconds=10)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    begun = time.monotonic()
    with StopSignal(), pytest.raises(Stopped, match="elsewhere:work was at work"):
        child.call("sleep", 1000, seconds=1000)
    assert time.monotonic() - begun < 3


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells a process of its parent's end"
)
def test_it_dies_with_its_parent_in_the_middle_of_a_call(target: str) -> None:
    code = (
        "import os, threading\n"
        "from espalier.engine.limited import Limited\n"
        f"child = Limited({target!r})\n"
        "print(child.call('pid', 0, seconds=10), flush=True)\n"
        "threading.Timer(0.3, lambda: os.kill(os.getpid(), 9)).start()\n"
        "child.call('power', 9, seconds=1000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert gone(int(done.stdout))
