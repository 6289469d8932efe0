"""One conversation with a model: what was said, and the answer as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from espalier.data.records import ASSISTANT, SYSTEM, USER, Message
from espalier.errors import UserError
from espalier.serve.model import ServedModel
from espalier.serve.requests import Finished, TextPiece
from espalier.serve.settings import AnswerSettings
from espalier.serve.text import Kind, Thoughts


@dataclass
class Session:
    """A conversation; `ask` adds a turn and yields the answer piece by piece.

    Attributes:
        settings: of the next answer; a seed moves on by one with each, so that the same question is answered anew.
        system: the system prompt.
        messages: what was said, without it.
        forgotten: exchanges that the last question left out, for the context could not hold them.
        cut: tokens that the last question was too long by; they were left out at its beginning.
        ended: why the last answer ended: `stop`, `length`, or "" where nobody listened to its end.
    """

    model: ServedModel
    settings: AnswerSettings
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    forgotten: int = 0
    cut: int = 0
    ended: str = ""
    asked: int = 0

    def ask(self, text: str) -> Iterator[tuple[Kind, str]]:
        """The answer to one more user turn, thoughts apart, as texts that grow by whole characters.

        An answer that the caller stops listening to is kept as far as it went.
        """
        self.messages.append(Message(USER, text))
        return self._answer()

    def retry(self) -> Iterator[tuple[Kind, str]]:
        """Another answer to the last question; the one that there was is forgotten."""
        while self.messages and self.messages[-1].role == ASSISTANT:
            self.messages.pop()
        return self._answer() if self.messages else iter(())

    def clear(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.messages, self.forgotten, self.cut = [], 0, 0

    def _answer(self) -> Iterator[tuple[Kind, str]]:
        room = min(self.settings.max_new_tokens, max(1, self.model.context // 2))
        before = [Message(SYSTEM, self.system)] if self.system else []
        try:
            asked = self.model.fitted([*before, *self.messages], room)
        except UserError:
            self.messages.pop()  # what cannot be asked was not asked
            raise
        self.forgotten, self.cut, self.ended = asked.forgotten, asked.cut, ""
        settings = replace(self.settings, max_new_tokens=room, n=1)
        if settings.seed is not None:
            settings = replace(settings, seed=settings.seed + self.asked)
        self.asked += 1
        said: dict[Kind, str] = {"thoughts": "", "answer": ""}
        thoughts = Thoughts(asked.in_thoughts)
        try:
            for event in self.model.engine.events(self.model.request(asked.ids, settings)):
                parts = thoughts.feed(event.text) if isinstance(event, TextPiece) else thoughts.end()
                for kind, more in parts:
                    said[kind] += more
                    yield kind, more
                if isinstance(event, Finished):
                    self.ended = event.reason
        finally:
            self.messages.append(Message(ASSISTANT, said["answer"], thoughts=said["thoughts"]))
