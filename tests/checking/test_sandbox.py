"""Programs against tests: what passes, what fails, and what is kept from the machine."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from espalier.checking.sandbox import Limits, failure_of

LIMITS = Limits(10.0, 1 << 30)
ADD = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    ("program", "test", "said"),
    [
        (ADD, "assert add(2, 3) == 5", None),
        (ADD, "assert add(2, 3) == 6, 'no'", "AssertionError: no"),
        ("def add(a, b) return", "", "SyntaxError: "),
        ("import sys\nsys.exit(0)", "assert False", "SystemExit: 0"),
        ("import os\nos._exit(0)", "assert False", "it ended with 0 before the test did"),
        ("print('x' * 100000)", "import os\nassert os.listdir('.') == []", None),
        ("x = [0] * 10**10", "", "MemoryError"),
        ("open('a', 'w').write('x' * (1 << 25))", "", "OSError: [Errno 27] File too large"),
        (
            "import os\nassert os.environ.get('SECRET') is None and os.environ['HOME'] == os.getcwd()",
            "",
            None,
        ),
    ],
)
def test_what_passes_and_what_is_said_of_the_rest(
    program: str, test: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "s")
    found = failure_of(program, test, LIMITS)
    assert found is None if said is None else str(found).startswith(said)


def test_an_endless_one_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time\nwhile True:\n    open({str(alive)!r}, 'w').write(str(time.time()))\n    time.sleep(0.02)"
    program = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\nwhile True: pass"
    begun = time.monotonic()
    assert failure_of(program, "", Limits(0.6, 1 << 30)) == "it has not ended after 0.6 s"
    assert time.monotonic() - begun < 5 and alive.exists()
    last = alive.read_text()
    time.sleep(0.1)
    assert alive.read_text() == last, "the child's child writes no more"


def test_there_is_no_network_where_the_system_lets_users_leave_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=server.accept, daemon=True).start()
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2).close()"
        found = failure_of(program, "", LIMITS)
        socket.create_connection(("127.0.0.1", port)).close()  # the same from here: there is one to reach
    if found is None:
        pytest.skip("this system does not let users make namespaces")
    assert found.startswith("OSError: [Errno 101] Network is unreachable")
