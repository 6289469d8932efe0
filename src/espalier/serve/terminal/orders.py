"""Lines that begin with a slash."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from espalier.config.ranges import range_words
from espalier.errors import UserError
from espalier.models.run_folder import find_model
from espalier.serve.contest import Contest
from espalier.serve.kept import load_session, save_session
from espalier.serve.settings import AnswerSettings
from espalier.serve.terminal.chat import Chat
from espalier.serve.votes import VOTES

SETTABLE = {one.name: one for one in fields(AnswerSettings) if range_words(one.metadata)}
del SETTABLE["n"], SETTABLE["logprobs"]


def obey(chat: Chat, line: str) -> bool:
    """Does what a line says; False ends the chat.

    Raises:
        UserError: the word is unknown (the nearest is named), or what it asks for cannot be done.
    """
    word, _, rest = line.strip().partition(" ")
    if word in ("/exit", "/quit"):
        return False
    if word not in ORDERS:
        near = difflib.get_close_matches(word, ORDERS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"there is no {word}.{meant} /help lists all; a question that begins with a slash needs a space before it."
        )
    ORDERS[word][0](chat, rest.strip())
    return True


def _help(chat: Chat, _rest: str) -> None:
    wide = max(len(f"{word} {order[1]}") for word, order in ORDERS.items())
    for word, (_, takes, does) in ORDERS.items():
        chat.note(f"{f'{word} {takes}':{wide}}  {does}")
    chat.note("Ctrl-C stops an answer, or clears the line · Alt-Enter begins a new line · Ctrl-D leaves")


def _clear(chat: Chat, _rest: str) -> None:
    chat.session.clear()
    chat.note("forgotten")


def _system(chat: Chat, rest: str) -> None:
    chat.session.system = rest or None
    chat.note(f"system: {chat.session.system or 'none'}")


def _set(chat: Chat, rest: str) -> None:
    settings = chat.session.settings
    if rest:
        given = [_setting(*word.partition("=")) for word in rest.split()]
        settings = chat.session.settings = replace(settings, **dict(given))
    chat.note(" ".join(f"{name}={getattr(settings, name)}" for name in SETTABLE))


def _setting(name: str, mark: str, value: str) -> tuple[str, Any]:
    if name not in SETTABLE:
        near = difflib.get_close_matches(name, SETTABLE, n=1)
        meant = f" Did you mean {near[0]}?" if near else f" There are {', '.join(SETTABLE)}."
        raise UserError(f"there is no setting {name!r}.{meant}")
    if not mark or not value:
        raise UserError(f"{name}: wanted {name}=NUMBER, {range_words(SETTABLE[name].metadata)}.")
    if name == "seed" and value.lower() == "none":
        return name, None
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue
    raise UserError(f"{name}={value}: wanted a number of {range_words(SETTABLE[name].metadata)}.")


def _save(chat: Chat, rest: str) -> None:
    file = _named_file("/save", rest)
    save_session(file, chat.session, replaces=file.resolve() in chat.kept)
    chat.kept.add(file.resolve())
    chat.note(f"{len(chat.session.messages)} turns saved in {file}")


def _load(chat: Chat, rest: str) -> None:
    file = _named_file("/load", rest)
    model = load_session(file, chat.session)
    chat.kept.add(file.resolve())
    other = f", held with {model}" if model not in ("", chat.session.model.name) else ""
    chat.note(f"{len(chat.session.messages)} turns taken up{other}")


def _named_file(word: str, rest: str) -> Path:
    if not rest:
        raise UserError(f"{word}: wanted {word} FILE.")
    return Path(rest).expanduser()


def _retry(chat: Chat, _rest: str) -> None:
    if not chat.session.messages:
        raise UserError("nothing was asked yet that could be asked again.")
    chat.ask(None)


def _compare(chat: Chat, rest: str) -> None:
    if not rest:
        if chat.contest is None:
            raise UserError("/compare: wanted /compare MODEL; the model itself may be beside itself.")
        chat.end_contest()
        chat.note("one model answers again")
        return
    same = find_model(rest, say=lambda _line: None) == chat.session.model.name
    rival = chat.session.model if same else chat.opener.writer(find_model(rest), rest)
    chat.end_contest()
    chat.contest = Contest(chat.session, rival, chat.votes)
    chat.note(f"both answer from now on, in an order of chance; /vote a, b or tie writes to {chat.votes}")
    if chat.session.messages:
        chat.ask(None)


def _vote(chat: Chat, rest: str) -> None:
    if chat.contest is None:
        raise UserError("/vote: only one model answers. Begin with /compare MODEL.")
    if rest not in VOTES:
        raise UserError(f"/vote {rest}: wanted a, b or tie.".replace(" :", ":"))
    a, b = chat.contest.vote(rest)  # type: ignore[arg-type]
    chat.note(f"a was {a}, b was {b}; noted in {chat.votes}")


def _score(chat: Chat, rest: str) -> None:
    if rest == "off":
        chat.scorer = None
        chat.note("no scores")
        return
    if rest:
        chat.scorer = chat.opener.scorer(rest, rest)
    if chat.scorer is None:
        raise UserError("/score: there is no reward model. Say /score MODEL, or start with --reward-model.")
    if not chat.session.messages:
        chat.note("each answer is scored from now on")
    chat.show_scores()


def _leave(_chat: Chat, _rest: str) -> None:
    raise AssertionError("obey leaves before")


ORDERS: dict[str, tuple[Callable[[Chat, str], None], str, str]] = {
    "/help": (_help, "", "this list"),
    "/clear": (_clear, "", "forget the conversation; the system prompt stays"),
    "/system": (_system, "[TEXT]", "set the system prompt, or none"),
    "/set": (_set, "[KEY=VALUE …]", "how answers are sampled"),
    "/retry": (_retry, "", "another answer to the last question"),
    "/save": (_save, "FILE", "keep the conversation as JSON"),
    "/load": (_load, "FILE", "take up one that was kept"),
    "/compare": (_compare, "[MODEL]", "have a second model answer too; without a name no longer"),
    "/vote": (_vote, "a|b|tie", "which of both answers is better, as a record to train on"),
    "/score": (_score, "[MODEL|off]", "a reward model's score of each answer"),
    "/exit": (_leave, "", "leave"),
}
