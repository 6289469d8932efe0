"""A conversation as a file: a chat record that `sft` reads, with the settings that it was held with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from espalier.data.records import ASSISTANT, SYSTEM, USER, Message
from espalier.disk.reading import read_json
from espalier.disk.writing import write_text
from espalier.errors import UserError
from espalier.serve.session import Session
from espalier.serve.settings import AnswerSettings
from espalier.serve.votes import settings_row


def save_session(file: Path, session: Session, *, replaces: bool = False) -> None:
    """Writes the conversation as one line of JSON.

    Args:
        replaces: whether a file that stands there may go.

    Raises:
        UserError: nothing was said, something stands there, or the disk refuses it.
    """
    if not session.messages:
        raise UserError("nothing was said that could be kept. Ask something first.")
    if file.exists() and not replaces:
        raise UserError(f"{file}: exists. Choose a name that is not taken.")
    system = [Message(SYSTEM, session.system)] if session.system else []
    record = {
        "messages": [message.as_turn() for message in [*system, *session.messages]],
        "model": session.model.name,
        "settings": settings_row(session.settings),
    }
    write_text(file, json.dumps(record, ensure_ascii=False) + "\n")


def load_session(file: Path, session: Session) -> str:
    """Takes up a conversation that was kept, with its system prompt and settings.

    Returns:
        The name of the model that it was held with; "" where the file names none.

    Raises:
        UserError: the file holds no conversation; the one that was going on stays.
    """
    row = read_json(file)
    turns = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns:
        raise UserError(
            f"{file}: holds no conversation. Wanted what /save writes: an object with `messages`."
        )
    messages = [_message(turn, f"{file}: messages, turn {at}") for at, turn in enumerate(turns, start=1)]
    given = row.get("settings") or {}
    try:
        settings = replace(AnswerSettings(), **given) if given else session.settings
    except TypeError:
        raise UserError(f"{file}: `settings` holds a key that is no setting: {', '.join(given)}.") from None
    system = messages.pop(0).content if messages[0].role == SYSTEM else None
    session.clear()
    session.system, session.messages, session.settings = system, messages, settings
    return str(row.get("model") or "")


def _message(turn: Any, place: str) -> Message:
    known = isinstance(turn, dict) and turn.get("role") in (SYSTEM, USER, ASSISTANT)
    if not known or not isinstance(turn.get("content"), str):
        raise UserError(f"{place}: wanted {{role, content}} of system, user or assistant.")
    return Message(turn["role"], turn["content"], thoughts=str(turn.get("reasoning_content") or ""))
