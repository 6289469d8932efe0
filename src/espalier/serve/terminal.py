"""The simplest chat: a prompt in the terminal and an answer that streams."""

from __future__ import annotations

import signal
import sys

import torch

from espalier.engine.signals import Ended
from espalier.models import load, load_adapted
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling
from espalier.screen import Screen
from espalier.serve.session import Session

HELP = "/clear forgets the conversation · /system TEXT sets the system prompt · /exit leaves · Ctrl-C stops an answer"


def chat(
    model_path: str,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    system: str | None,
    rope_scaling: str | None = None,
) -> None:
    """Talk to the model of a folder until /exit or the end of the input; reads a pipe as well.

    Raises:
        UserError: no model there.
    """
    console = Screen()
    lm = load_adapted.load_with_adapter(model_path, rope_scaling=rope_scaling)
    lm = lm.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load.load_tokenizer(model_path)
    model = TreeModel(lm, probe(lm)).eval()
    context = load.context_length(lm)
    room = min(max_new_tokens, max(1, context // 2))
    if room < max_new_tokens:
        console.say(f"answers of at most {room} tokens: the model's context is {context}", "dim")
    session = Session(model, tokenizer, Sampling(room, temperature, top_p), context - room, system)
    by_hand = sys.stdin.isatty()
    if by_hand:
        console.say(f"{model_path}: {model.traits.reason}\n{HELP}", "dim")
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
    before = session.forgotten
    try:
        for text in session.ask(line):
            console.out(text, end="")
            console.file.flush()
    except KeyboardInterrupt as asked:
        if isinstance(asked, Ended) and asked.number != signal.SIGINT:
            raise
        console.out(" …", end="")
    console.out("")
    if session.forgotten > before:
        console.say("the oldest exchange was forgotten: the conversation had outgrown the model", "dim")
    if session.cut:
        console.say(f"{session.cut} tokens at the beginning were left out: more than the model holds", "dim")
