"""One question to one model or two, as one stream of events; and the votes on two answers."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from espalier.data.records import ASSISTANT, Message
from espalier.errors import UserError
from espalier.serve.contest import OTHER_SEED
from espalier.serve.http.errors import Refusal, as_json
from espalier.serve.http.listening import Listening, sse
from espalier.serve.model import Asked, ServedModel
from espalier.serve.requests import Finished, TextPiece
from espalier.serve.scorer import ServedScorer
from espalier.serve.settings import AnswerSettings
from espalier.serve.text import Thoughts
from espalier.serve.votes import Vote, Voted, append_record, settings_row, vote_record

REMEMBERED = 1000
"""Pairs of answers that can be voted on; older ones leave first."""

Apart = Callable[..., Awaitable[Any]]


@dataclass
class AskedSide:
    """One model, how it is asked, and what it has said so far."""

    model: ServedModel
    settings: AnswerSettings
    asked: Asked
    answer: str = ""
    thoughts: str = ""
    score: float | None = None

    @property
    def message(self) -> Message:
        return Message(ASSISTANT, self.answer, thoughts=self.thoughts)

    @property
    def voted(self) -> Voted:
        return Voted(self.model.name, settings_row(self.settings), self.message, self.score)


def asked_sides(
    models: Sequence[ServedModel], messages: Sequence[Message], settings: AnswerSettings, blind: bool
) -> list[AskedSide]:
    """How each model is asked, as `a` and `b`; blind, in an order of chance.

    A seed is drawn where none is given, so that a vote's record can name it.

    Raises:
        UserError: a template cannot write the conversation.
    """
    seed = secrets.randbits(31) if settings.seed is None else settings.seed
    sides = []
    for number, model in enumerate(models):
        room = min(settings.max_new_tokens, max(1, model.context // 2))
        own = replace(settings, max_new_tokens=room, seed=seed + number * OTHER_SEED)
        sides.append(AskedSide(model, own, model.fitted(messages, room)))
    if blind:
        random.SystemRandom().shuffle(sides)
    return sides


class Exchange:
    """The answers to one question, as they come.

    Raises:
        Refusal: an engine is full, or cannot answer; then none is asked.
    """

    def __init__(self, sides: Sequence[AskedSide]) -> None:
        self.sides = sides
        self._listening: list[Listening] = []
        try:
            for side in sides:
                request = side.model.request(side.asked.ids, side.settings)
                self._listening.append(Listening(side.model.engine, [request]))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Nobody listens any longer."""
        for listening in self._listening:
            listening.close()

    async def events(self) -> AsyncGenerator[tuple[int, TextPiece | Finished | Refusal], None]:
        """(number of the side, event) of all sides, until each has ended or failed."""
        told: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

        async def pass_on(number: int, listening: Listening) -> None:
            try:
                async for _, event in listening.events():
                    await told.put((number, event))
            except Refusal as refusal:
                await told.put((number, refusal))

        tasks = [
            asyncio.create_task(pass_on(number, listening))
            for number, listening in enumerate(self._listening)
        ]
        left = len(tasks)
        try:
            while left:
                number, event = await told.get()
                left -= not isinstance(event, TextPiece)
                yield number, event
        finally:
            for task in tasks:
                task.cancel()
            self.close()


@dataclass
class Ballot:
    """Pairs of answers that wait for a vote.

    Attributes:
        file: the jsonl file of votes.
    """

    file: Path
    _pairs: OrderedDict[str, tuple[list[Message], tuple[Voted, Voted]]] = field(default_factory=OrderedDict)

    def add(self, prompt: Sequence[Message], sides: Sequence[AskedSide]) -> str:
        """Remembers two answers; returns the name that a vote says."""
        a, b = sides
        name = secrets.token_urlsafe(12)
        self._pairs[name] = list(prompt), (a.voted, b.voted)
        while len(self._pairs) > REMEMBERED:
            self._pairs.popitem(last=False)
        return name

    def vote(self, name: str, vote: Vote) -> dict[str, str]:
        """Writes the record; who wrote `a` and `b`.

        Raises:
            Refusal: the pair is not known, was voted on, or nothing can be learned from it.
        """
        if name not in self._pairs:
            raise Refusal(404, "these two answers were voted on already, or the page was started anew since.")
        prompt, (a, b) = self._pairs[name]
        try:
            append_record(self.file, vote_record(prompt, (a, b), vote))
        except UserError as error:
            raise Refusal(400, str(error), param="vote") from None
        del self._pairs[name]
        return {"a": a.model, "b": b.model, "file": str(self.file)}


async def told(
    exchange: Exchange,
    prompt: Sequence[Message],
    ballot: Ballot,
    scorer: ServedScorer | None,
    apart: Apart,
    blind: bool = False,
) -> AsyncIterator[str]:
    """The events of an exchange: text and thoughts of each side, its end, and the name to vote on two answers.

    Args:
        apart: runs a function in another thread.
        blind: whether no model is named.
    """
    sides, failed = exchange.sides, False
    yield _event(names=[None if blind else side.model.name for side in sides])
    thoughts = [Thoughts(side.asked.in_thoughts) for side in sides]
    async with contextlib.aclosing(exchange.events()) as events:
        async for number, event in events:
            side = sides[number]
            if isinstance(event, Refusal):
                failed = True
                yield _event(side=number, error=event.message)
                continue
            parts = (
                thoughts[number].feed(event.text) if isinstance(event, TextPiece) else thoughts[number].end()
            )
            for kind, more in parts:
                if kind == "thoughts":
                    side.thoughts += more
                else:
                    side.answer += more
                yield _event(side=number, kind=kind, text=more)
            if isinstance(event, Finished):
                yield _event(
                    side=number, end=event.reason, tokens=event.tokens,
                    forgotten=side.asked.forgotten, cut=side.asked.cut,
                )  # fmt: skip
                if scorer is not None:
                    yield _event(side=number, **await apart(_scored, scorer, prompt, side))
    if len(sides) == 2 and not failed:
        yield _event(vote=ballot.add(prompt, sides))
    yield sse("[DONE]")


def _scored(scorer: ServedScorer, prompt: Sequence[Message], side: AskedSide) -> dict[str, Any]:
    try:
        (side.score,) = scorer.score(prompt, [side.answer])
    except UserError as error:
        return {"no_score": str(error)}
    return {"score": side.score}


def _event(**content: Any) -> str:
    return sse(as_json(content))
