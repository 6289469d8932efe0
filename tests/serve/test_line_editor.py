"""The chat in a real terminal: a pseudo-terminal with a screen behind it, as a person sees it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pexpect = pytest.importorskip("pexpect")
pyte = pytest.importorskip("pyte")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")]


class Terminal:
    """A chat in a terminal of 60 by 40."""

    def __init__(self, folder: Path, home: Path, *options: str) -> None:
        self.screen: Any = pyte.HistoryScreen(60, 40, history=500)
        self._stream = pyte.ByteStream(self.screen)
        command = ["-m", "espalier.cli", "chat", str(folder), *options]
        environment = {**os.environ, "XDG_STATE_HOME": str(home), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
        self.child = pexpect.spawn(sys.executable, command, dimensions=(40, 60), env=environment, timeout=60)

    def read(self, until: Callable[[str], bool], seconds: float = 60.0) -> str:
        """What is shown, when it is as it should be."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(pexpect.TIMEOUT, pexpect.EOF):
                self._feed(self.child.read_nonblocking(65536, timeout=0.1))
            if until(self.shown):
                return self.shown
        raise AssertionError(self.shown)

    def _feed(self, data: bytes) -> None:
        if b"\x1b[6n" in data:  # where the cursor is, is asked by the editor and answered by a terminal
            self.child.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")
        self._stream.feed(data)

    @property
    def shown(self) -> str:
        """All lines, without the empty half of wide characters."""
        return "\n".join(line.rstrip() for line in self.screen.display if line.strip())

    def say(self, keys: str) -> None:
        self.child.send(keys)

    def ready(self) -> None:
        """Waits until an answer has ended and the prompt stands there again."""
        self.read(lambda shown: shown.endswith("\n>") or shown == ">")


@pytest.fixture
def terminal(folder: Path, tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(folder, tmp_path, "--max-new-tokens", "6", "--system", "S")
    yield made
    made.child.close(force=True)


def test_a_person_types_edits_and_comes_again(terminal: Terminal, folder: Path, tmp_path: Path) -> None:
    terminal.read(lambda shown: "/help lists" in shown and shown.endswith(">"))
    terminal.say("你好吗")
    terminal.read(lambda shown: shown.endswith("> 你好吗"))
    terminal.say("\x7f")
    terminal.read(lambda shown: shown.endswith("> 你好"))  # one key, one character, its two columns
    terminal.say("\x1b[D啊")
    terminal.read(lambda shown: shown.endswith("> 你啊好"))
    terminal.say("\x03")
    terminal.read(lambda shown: shown.endswith("\n>"))  # Ctrl-C clears the line, and the chat goes on
    terminal.say("/clear\r")
    terminal.read(lambda shown: "forgotten" in shown and shown.endswith("\n>"))
    terminal.say("\x1b[200~第一行\n第二行\x1b[201~")
    terminal.read(lambda shown: "第一行" in shown and "第二行" in shown)
    terminal.say("\r")
    terminal.ready()
    kept = tmp_path / "talk.json"
    terminal.say(f"/save {kept}\r")
    terminal.read(lambda shown: "2 turns saved" in shown.replace("\n", ""))
    assert '"content": "第一行\\n第二行"' in kept.read_text("utf-8")  # one question with both lines
    terminal.say("\x04")
    terminal.child.expect(pexpect.EOF)
    terminal.child.close()
    assert terminal.child.exitstatus == 0
    history = tmp_path / "espalier" / "chat_history"
    assert "+第二行" in history.read_text("utf-8") and history.stat().st_mode & 0o077 == 0

    again = Terminal(folder, tmp_path, "--max-new-tokens", "300", "--temperature", "1.5")
    again.read(lambda shown: "/help lists" in shown and shown.endswith(">"))
    again.say("\x1b[A\x1b[A")
    again.read(lambda shown: "第二行" in shown)  # asked before, in another process
    again.say("\r")
    again.read(lambda shown: len(shown) > 230)
    again.say("\x03")
    again.read(lambda shown: "…" in shown and shown.endswith("\n>"))  # stopped, and ready for the next
    again.say("/exit\r")
    again.child.expect(pexpect.EOF)
    again.child.close()
    assert again.child.exitstatus == 0
