"""The simplest chat: a prompt in the terminal and an answer that streams."""

from __future__ import annotations

import signal
import sys

from espalier.engine.signals import Ended
from espalier.models.open import OpenModel
from espalier.screen import Screen
from espalier.serve.model import ServedModel
from espalier.serve.requests import EngineLimits
from espalier.serve.session import Session
from espalier.serve.settings import AnswerSettings
from espalier.serve.text import CLOSED, OPENED

HELP = "/clear forgets the conversation · /system TEXT sets the system prompt · /exit leaves · Ctrl-C stops an answer"


def chat(
    opened: OpenModel,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    system: str | None,
) -> None:
    """Talk to a model until /exit or the end of the input; reads a pipe as well.

    Raises:
        UserError: the model has no tokenizer, or a setting is out of its range.
    """
    console = Screen()
    settings = AnswerSettings(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=1)
    model = ServedModel(opened.name, opened, limits=EngineLimits(0, rows=1))
    room = max(1, model.context // 2)
    if room < max_new_tokens:
        console.say(f"answers of at most {room} tokens: the model's context is {model.context}", "dim")
    session = Session(model, settings, system)
    by_hand = sys.stdin.isatty()
    if by_hand:
        console.say(f"{opened.name}: {model.model.traits.reason}\n{HELP}", "dim")
    try:
        _talk(session, console, by_hand)
    finally:
        model.close()


def _talk(session: Session, console: Screen, by_hand: bool) -> None:
    while True:
        try:
            line = input("> " if by_hand else "")
        except (EOFError, KeyboardInterrupt):
            break
        if not line.strip():
            continue
        if line.startswith("/"):
            if not _command(line, session, console):
                break
            continue
        _answer(line, session, console)


def _command(line: str, session: Session, console: Screen) -> bool:
    """Obey a line that begins with a slash; False ends the chat."""
    word, _, rest = line.partition(" ")
    if word in ("/exit", "/quit"):
        return False
    if word == "/clear":
        session.clear()
        console.say("forgotten", "dim")
    elif word == "/system":
        session.system = rest.strip() or None
        console.say(f"system: {session.system or 'none'}", "dim")
    else:
        console.say(HELP, "dim")
    return True


def _answer(line: str, session: Session, console: Screen) -> None:
    forgotten, last = session.forgotten, "answer"
    try:
        for kind, text in session.ask(line):
            if kind != last:
                console.out(f"{OPENED}\n" if kind == "thoughts" else f"\n{CLOSED}\n", end="")
            last = kind
            console.out(text, end="")
            console.file.flush()
    except KeyboardInterrupt as asked:
        if isinstance(asked, Ended) and asked.number != signal.SIGINT:
            raise
        console.out(" …", end="")
    console.out("")
    if session.forgotten > forgotten:
        console.say("the oldest exchange was forgotten: the conversation had outgrown the model", "dim")
    if session.cut:
        console.say(f"{session.cut} tokens at the beginning were left out: more than the model holds", "dim")
