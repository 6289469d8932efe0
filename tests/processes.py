"""Second processes without their imports: each is forked from one that has torch and Espalier in it already.

A child is a process in its own right, with its own number, signals, pipes and exit code; only the five seconds that
every new interpreter spends on imports are not spent again. What is about imports, the hash seed or the memory of a
fresh interpreter starts one with `subprocess` itself.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import gc
import io
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
_started: list[str] = []
"""The address of the process that forks, once one was asked for."""


class Popen(subprocess.Popen[str]):
    """`subprocess.Popen` of ``[sys.executable, "-m" or "-c", ...]``, by fork."""

    def _execute_child(
        self, args: Sequence[str], executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Sequence[int],
        cwd: Any, env: Mapping[str, str] | None, startupinfo: Any, creationflags: Any, shell: bool,
        p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int, errread: int, errwrite: int,
        restore_signals: bool, gid: Any, gids: Any, uid: Any, umask: Any, start_new_session: bool, *more: Any,
    ) -> None:  # fmt: skip
        assert args[0] == sys.executable and args[1] in ("-m", "-c"), args
        ends = [
            given if given != -1 else number for number, given in enumerate((p2cread, c2pwrite, errwrite))
        ]
        asked = {
            "args": list(args[1:]), "env": dict(os.environ if env is None else env), "pass_fds": list(pass_fds),
            "cwd": str(cwd or Path.cwd()), "session": start_new_session,
        }  # fmt: skip
        try:
            self.pid = _ask(asked, [*ends, *pass_fds])["pid"]
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
        self._child_created = True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        while True:
            status = _ask({"wait": self.pid}, [])["status"]
            if status is not None:
                return self.pid, status
            if wait_flags & os.WNOHANG:
                return 0, 0
            time.sleep(0.005)

    def _internal_poll(self, _deadstate: Any = None, **_: Any) -> int | None:
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def run(
    command: Sequence[str], *, input: str | None = None, timeout: float = 500, check: bool = False, **how: Any
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with text for output, by fork."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} if how.pop("capture_output", False) else {}
    if input is not None:
        pipes["stdin"] = subprocess.PIPE
    with Popen(command, **{"text": True, **pipes, **how}) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def _ask(asked: Mapping[str, Any], descriptors: Sequence[int]) -> dict[str, Any]:
    if not _started:
        address = Path(tempfile.gettempdir()) / f"tests-{_tests()}" / "line"
        address.parent.mkdir(exist_ok=True)
        with FileLock(f"{address}.lock"):
            if not address.exists():
                _start_nursery(address)
        _started.append(str(address))
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(_started[0])
        text = json.dumps(asked).encode()
        line.sendmsg(
            [len(text).to_bytes(8, "big")],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))],
        )
        line.sendall(text)
        with line.makefile("rb") as answer:
            return json.loads(answer.read())


def _tests() -> int:
    """The process of this run of the tests: the parent of xdist's workers, or this one."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


def _start_nursery(address: Path) -> None:
    """One for all workers; it ends when the run of the tests does."""
    path = os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.processes", str(address), str(_tests())],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not address.exists():
        assert process.poll() is None, "the process that forks did not start"
        time.sleep(0.02)


# --- the process that forks -------------------------------------------------------------------------


def _serve(address: str, tests: int) -> dict[str, Any] | None:
    """Answer until the tests end: None. In each child: what it is asked to be."""
    _import_all()
    door = socket.socket(socket.AF_UNIX)
    door.bind(address + ".new")
    door.listen(64)
    Path(address + ".new").rename(address)
    ended: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([door], [], [], 1.0)
        if not ready:
            try:
                os.kill(tests, 0)
            except ProcessLookupError:
                shutil.rmtree(Path(address).parent, ignore_errors=True)
                return None
            continue
        line, _ = door.accept()
        with line:
            size, rights, _, _ = line.recvmsg(8, socket.CMSG_SPACE(4 * 64))
            given = array.array("i")
            for _, _, data in rights:
                given.frombytes(data[: len(data) - len(data) % given.itemsize])
            text = b""
            while len(text) < int.from_bytes(size, "big"):
                text += line.recv(1 << 20)
            asked = json.loads(text)
            if "wait" in asked:
                answer: dict[str, Any] = {"status": _status(asked["wait"], ended)}
            else:
                pid = os.fork()
                if pid == 0:
                    door.close()
                    line.close()
                    _become(asked, given.tolist())
                    return asked
                answer = {"pid": pid}
            line.sendall(json.dumps(answer).encode())
        for number in given:
            os.close(number)


def _status(pid: int, ended: dict[int, int]) -> int | None:
    if pid not in ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return None
        ended[pid] = status
    return ended[pid]


def _become(asked: Mapping[str, Any], given: Sequence[int]) -> None:
    """Descriptors, signals, environment and folder as a new interpreter would have them."""
    apart = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 100) for number in given]
    for number in given:
        os.close(number)
    for number, target in zip(apart, [0, 1, 2, *asked["pass_fds"]], strict=True):
        os.dup2(number, target)
        os.close(number)
    if asked["session"]:
        os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False), encoding="utf-8")  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding="utf-8", line_buffering=os.isatty(1))  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(
        open(2, "wb", closefd=False),  # noqa: SIM115
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def _import_all() -> None:
    import torch

    for name in ("accelerate", "deepspeed", "peft", "lm_eval.__main__"):
        with contextlib.suppress(ImportError):
            __import__(name)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # else a child's first collection writes to, and so copies, every page
    own = Path("/proc/self/task")
    assert not own.exists() or len(list(own.iterdir())) == 1, "a fork keeps one thread only"


def _work(asked: Mapping[str, Any], address: str) -> None:
    how, what, *words = asked["args"]
    from espalier.engine import launch

    _started.append(address)
    launch.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": Popen})  # type: ignore[assignment]
    sys.argv = [what if how == "-m" else "-c", *words]
    if how == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    else:
        sys.modules.pop(what, None)  # else runpy warns that it is there already
        runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    wanted = _serve(sys.argv[1], int(sys.argv[2]))
    if wanted is not None:
        _work(wanted, sys.argv[1])
