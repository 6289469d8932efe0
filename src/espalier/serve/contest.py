"""Two models that answer the same question, in an order that nobody is told before the vote."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from espalier.data.records import ASSISTANT, SYSTEM, Message
from espalier.errors import UserError
from espalier.serve.model import ServedModel
from espalier.serve.session import Session
from espalier.serve.settings import AnswerSettings
from espalier.serve.text import Kind
from espalier.serve.votes import Vote, Voted, append_record, settings_row, vote_record

OTHER_SEED = 1_000_003
"""Between the seeds of both sides, so that a model beside itself does not say the same twice."""

Scores = Callable[[list[Message], Message], float]


@dataclass
class Contest:
    """A conversation with two models at a time.

    The conversation goes on with the answer that was preferred; where nobody votes, with the first model's.

    Attributes:
        session: the first model's; it has the conversation.
        rival: the other model.
        votes: the jsonl file.
        order: of chance, which answer is `a`.
    """

    session: Session
    rival: ServedModel
    votes: Path
    order: random.Random = field(default_factory=random.Random)
    _prompt: list[Message] = field(default_factory=list)
    _sides: tuple[Voted, ...] = ()

    def ask(self, text: str) -> Iterator[tuple[str, Kind, str]]:
        """(a or b, kind, more text): the first answer whole, then the second."""
        return self._both(lambda session: session.ask(text))

    def retry(self) -> Iterator[tuple[str, Kind, str]]:
        """Two other answers to the last question."""
        return self._both(Session.retry)

    @property
    def complete(self) -> bool:
        """Whether there are two answers to choose from, and the conversation ends with one of them."""
        last = self.session.messages[-1:]
        return bool(last) and any(side.answer is last[0] for side in self._sides)

    def scored(self, score: Scores) -> tuple[float, float]:
        """A reward model's scores of both answers, which the vote's record keeps.

        Raises:
            UserError: there are none.
        """
        self._check()
        a, b = (replace(side, score=score(self._prompt, side.answer)) for side in self._sides)
        self._sides = a, b
        assert a.score is not None and b.score is not None
        return a.score, b.score

    def vote(self, vote: Vote) -> tuple[str, str]:
        """Writes the record, and goes on with the answer that was preferred.

        Returns:
            The names of the models that wrote `a` and `b`.

        Raises:
            UserError: there are no two answers, nothing can be learned from them, or the disk refuses the record.
        """
        self._check()
        a, b = self._sides
        append_record(self.votes, vote_record(self._prompt, (a, b), vote))
        if vote != "tie":
            self.session.messages[-1] = (a if vote == "a" else b).answer
        self._sides = ()
        return a.model, b.model

    def _check(self) -> None:
        if not self.complete:
            raise UserError("there are no two answers to choose from. Ask a question first.")

    def _both(self, ask: Callable[[Session], Iterator[tuple[Kind, str]]]) -> Iterator[tuple[str, Kind, str]]:
        self._sides = ()
        mine, settings = self.session, self.session.settings
        theirs = replace(mine, model=self.rival, messages=list(mine.messages), settings=_moved(settings))
        order = [mine, theirs]
        self.order.shuffle(order)
        try:
            for label, session in zip("ab", order, strict=True):
                for kind, more in ask(session):
                    yield label, kind, more
        except BaseException:
            # The conversation goes on with what the first model has said, were it only a part.
            if len(mine.messages) < len(theirs.messages):
                mine.messages = theirs.messages
            raise
        system = [Message(SYSTEM, mine.system)] if mine.system else []
        self._prompt = [*system, *mine.messages[:-1]]
        self._sides = tuple(_side(session) for session in order)


def _moved(settings: AnswerSettings) -> AnswerSettings:
    return settings if settings.seed is None else replace(settings, seed=settings.seed + OTHER_SEED)


def _side(session: Session) -> Voted:
    settings = session.settings
    if settings.seed is not None:
        settings = replace(settings, seed=settings.seed + session.asked - 1)
    assert session.messages[-1].role == ASSISTANT
    return Voted(session.model.name, settings_row(settings), session.messages[-1])
