"""Programs that nobody has read, run against tests with limits of time and memory.

It keeps honest mistakes (endless loops, huge lists, files written about) from the run: each test has a process of its
own, an empty folder, limits of processor time, memory, file sizes and open files, and is killed with all that it has
started. On Linux, where the system lets users make namespaces, there is no network and nothing survives the process;
elsewhere there is both. It is no jail: a program can read what the user can read, and one that looks for it can tell
the harness that it has passed. For programs that may mean harm use a container or a virtual machine around the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from espalier.disk.temporary import temporary_folder
from espalier.engine.signals import stop_asked
from espalier.errors import Stopped

_SAID = 4096
"""Bytes that are read of what a program says."""


@dataclass(frozen=True)
class Limits:
    """Of one test: `seconds` by the clock, `memory` in bytes of address space."""

    seconds: float
    memory: int


def failure_of(program: str, test: str, limits: Limits) -> str | None:
    """Why a program does not pass a test, such as "AssertionError: 3"; None where it does.

    Args:
        program: Python code.
        test: Python code that runs behind it in the same namespace, and passes where it raises nothing.

    Raises:
        Stopped: a signal came while it ran.
    """
    passed = secrets.token_hex(16)
    asked = json.dumps({"program": program, "test": test, "passed": passed, "memory": limits.memory,
                        "seconds": limits.seconds, "parent": os.getpid()})  # fmt: skip
    with temporary_folder() as folder:
        home = {
            "PATH": os.defpath,
            "HOME": folder,
            "TMPDIR": folder,
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(Path(__file__).with_name("sandboxed.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=folder, env=home, process_group=0,
        )  # fmt: skip
        try:
            return _waited(process, asked, passed, limits.seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]


def _waited(process: subprocess.Popen[bytes], asked: str, passed: str, seconds: float) -> str | None:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(asked.encode())
        process.stdin.close()
    begun = time.monotonic()
    while process.poll() is None:
        if time.monotonic() - begun > seconds:
            return f"it has not ended after {seconds:g} s"
        if stop_asked():
            raise Stopped("stopped while a program was tested; run the same command again")
        time.sleep(0.005)
    os.set_blocking(process.stdout.fileno(), False)
    said = (process.stdout.read(_SAID) or b"").decode("utf-8", "replace")
    if said == passed:
        return None
    return said or f"it ended with {process.returncode} before the test did"
