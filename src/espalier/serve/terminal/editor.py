"""Where questions come from: a line editor with a history in a terminal, or lines of a pipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from espalier.screen import Screen

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings

PROMPT = "> "


class Questions(Protocol):
    """Gives one question or command after the other."""

    def read(self) -> str | None:
        """The next one, of several lines where they were pasted together; None at the end."""
        ...


class PipedQuestions:
    """Each line of the standard input."""

    def read(self) -> str | None:
        """See `Questions`."""
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None


class LineEditor:
    """prompt_toolkit's editor: arrows, search with Ctrl-R, a history that outlives the program, wide characters.

    Enter asks; Alt-Enter begins a new line, and what is pasted stays one question with all its lines. Ctrl-C clears
    the line, Ctrl-D on an empty one ends.

    Args:
        history: the file of earlier questions, which only its owner may read; None keeps them in memory.
        words: completed with Tab at the beginning of a line.
    """

    def __init__(self, history: Path | None, words: list[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.output import create_output

        to = sys.stdout if sys.stdout.isatty() else sys.stderr
        self._session: Any = PromptSession(
            history=InMemoryHistory() if history is None else FileHistory(str(history)),
            multiline=True,
            key_bindings=_keys(),
            completer=WordCompleter(words, sentence=True),
            complete_while_typing=False,
            prompt_continuation=" " * len(PROMPT),
            output=create_output(stdout=to),
        )

    def read(self) -> str | None:
        """See `Questions`."""
        try:
            return str(self._session.prompt(PROMPT))
        except EOFError:
            return None


def _keys() -> KeyBindings:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    keys, asking = KeyBindings(), has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=asking)
    def _ask(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=asking)
    def _new_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=asking)
    def _clear(event: Any) -> None:
        event.current_buffer.reset()

    return keys


def questions(words: list[str], notes: Screen) -> Questions:
    """The editor where a person sits at the terminal, else the lines of the pipe.

    Args:
        words: the commands.
        notes: told where the history cannot be kept.
    """
    if not sys.stdin.isatty() or not (sys.stdout.isatty() or sys.stderr.isatty()):
        return PipedQuestions()
    return LineEditor(_history_file(notes), words)


def _history_file(notes: Screen) -> Path | None:
    """By the XDG rules, below ``~/.local/state``; made so that only its owner can read it."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    file = Path(state).expanduser() / "espalier" / "chat_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except (OSError, RuntimeError) as error:
        notes.say(f"note: {file} cannot be written ({error}); questions are not kept", "yellow")
        return None
    return file
