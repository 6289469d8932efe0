"""Several ranks under one parent: signals, one message, exit codes, nobody left behind.

The ranks here are small programs that speak to their parent as the command does, so that one costs a tenth of a second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RANK = """
import os, signal, sys, time
from espalier import cli
from espalier.engine.signals import StopSignal
from espalier.errors import Stopped, UserError
rank, what = int(os.environ["RANK"]), sys.argv[1]
world = int(os.environ["WORLD_SIZE"])
def work():
    print(f"rank {rank} of {world} at work", flush=True)
    if what == "fine": return 0
    if what == "error": raise UserError("the file is missing")
    if what == "error in one":
        if rank == 1: raise UserError("step 3: the loss is nan")
        time.sleep(0.3)
        raise RuntimeError("connection closed by peer")
    if what == "bug": raise KeyError("surprise")
    with StopSignal() as stop:
        open(sys.argv[2] + str(rank), "w").write(str(os.getpid()))
        while not stop.asked: time.sleep(0.01)
        if what == "stubborn": time.sleep(1000)
    raise Stopped("stopped at step 5", 5)
sys.exit(cli.guarded(work))
"""

PARENT = """
import os, sys
from espalier import cli
from espalier.engine.launch import watch_over
sys.exit(cli.guarded(lambda: watch_over([sys.executable, "-c", os.environ["PROGRAM"], *sys.argv[1:]], 3, {})))
"""


def start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PROGRAM": RANK}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, *words],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def pids(folder: Path) -> list[int]:
    """Of the three ranks, once all are in the middle of their work."""
    for _ in range(1000):
        found = [file.read_text() for file in sorted(folder.iterdir())]
        if len(found) == 3 and all(found):
            return [int(text) for text in found]
        time.sleep(0.01)
    raise AssertionError("the ranks did not begin")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


@pytest.mark.slow
def test_ranks_that_are_fine_write_where_the_parent_does_or_behind_their_number() -> None:
    code, out, err = end(start("fine"))
    assert code == 0 and out == "rank 0 of 3 at work\n"
    assert sorted(err.splitlines()) == [f"[rank {i}] rank {i} of 3 at work" for i in (1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("error", 2, "error: the file is missing"),
        ("error in one", 2, "error: step 3: the loss is nan"),
        ("bug", 1, "KeyError: 'surprise'"),
    ],
)
def test_an_error_is_said_once_with_its_code(what: str, code: int, said: str) -> None:
    found, _, err = end(start(what))
    own = [line for line in err.splitlines() if not line.startswith("[rank")]
    assert found == code and err.count(said) == 1
    assert ("Traceback" in err) == (what == "bug")
    assert what == "bug" or own == [said], "nothing else"
    assert what != "bug" or own[-1].startswith("(in rank ")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("whom", ["parent", "group"])
def test_a_signal_reaches_every_rank_once_and_is_waited_for(
    number: signal.Signals, whom: str, tmp_path: Path
) -> None:
    process = start("wait", f"{tmp_path}/")
    ranks = pids(tmp_path)
    (os.kill if whom == "parent" else os.killpg)(process.pid, number)
    code, _, err = end(process)
    assert code == 3 and err.count("stopped at step 5") == 1 and "Traceback" not in err
    assert not any(map(alive, ranks))


@pytest.mark.slow
def test_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    process = start("stubborn", f"{tmp_path}/")
    ranks = pids(tmp_path)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.4)
    assert process.poll() is None and all(map(alive, ranks)), "the first one is waited for"
    process.send_signal(signal.SIGTERM)
    code, _, err = end(process)
    assert code == 128 + signal.SIGTERM and "Traceback" not in err
    assert not any(map(alive, ranks))


@pytest.mark.slow
def test_a_rank_that_dies_is_named_and_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from espalier.engine import launch

    monkeypatch.setattr(
        "tests.engine.test_launch.PARENT", PARENT.replace("sys.exit(", SHORT + "sys.exit(", 1)
    )
    assert launch.GRACE > launch.GRACE_OF_DEATH > 1, "the others get a while by themselves"
    process = start("wait", f"{tmp_path}/")
    ranks = pids(tmp_path)
    os.kill(ranks[1], signal.SIGKILL)
    code, _, err = end(process)
    own = [line for line in err.splitlines() if not line.startswith("[rank")]
    assert code == 1 and len(own) == 1
    assert (
        own[0].startswith(f"rank 1 (process {ranks[1]}) was ended by SIGKILL")
        and "checkpoint is kept" in own[0]
    )
    assert not any(map(alive, ranks))


SHORT = "from espalier.engine import launch; launch.GRACE_OF_DEATH = 0.3\n"


@pytest.mark.slow
def test_no_rank_outlives_its_parent(tmp_path: Path) -> None:
    process = start("wait", f"{tmp_path}/")
    ranks = pids(tmp_path)
    process.kill()
    process.communicate()
    for _ in range(200):
        if not any(map(alive, ranks)):
            break
        time.sleep(0.02)
    assert not any(map(alive, ranks))
