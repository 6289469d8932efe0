"""One conversation with a model: what was said, how it is written for the model, and the answer as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from espalier.data.encode.encoding import leading
from espalier.data.encode.templates import Template, choose_template, prompt_text
from espalier.data.records import ASSISTANT, SYSTEM, USER, Message
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.sampling.generate import Sampling, decode


@dataclass
class Session:
    """A conversation; `ask` adds a turn and yields the answer piece by piece.

    Attributes:
        limit: the most tokens of a prompt; the oldest exchange goes when it is passed.
        forgotten: exchanges that have gone so far.
        cut: tokens that the last question was too long by; they were left out at its beginning.
    """

    model: TreeModel
    tokenizer: Any
    sampling: Sampling
    limit: int
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    forgotten: int = 0
    cut: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self.template: Template = choose_template(self.tokenizer, "auto")
        end = self.tokenizer.encode(self.template.end_of_turn, add_special_tokens=False)[-1:]
        stop = tuple(sorted({*load.end_tokens(self.model.lm, self.tokenizer), *end}))
        self.sampling = Sampling(
            self.sampling.max_new_tokens,
            self.sampling.temperature,
            self.sampling.top_p,
            self.sampling.top_k,
            stop,
        )

    def ask(self, text: str) -> Iterator[str]:
        """The answer to one more user turn, as text that grows by whole characters.

        An answer that the caller stops listening to is kept as far as it went.
        """
        self.messages.append(Message(USER, text))
        tokens: list[int] = []
        shown = ""
        try:
            self.seed += 1
            for _, token, _, _ in decode(
                self.model.lm, self.model.traits, [self._prompt()], self.sampling, seeds=[self.seed]
            ):
                tokens.append(token)
                text = whole_characters(self.tokenizer.decode(tokens, skip_special_tokens=True))
                if len(text) > len(shown):
                    yield text[len(shown) :]
                    shown = text
        finally:
            self.messages.append(Message(ASSISTANT, self.tokenizer.decode(tokens, skip_special_tokens=True)))

    def clear(self) -> None:
        self.messages, self.forgotten, self.cut = [], 0, 0

    def _prompt(self) -> list[int]:
        while True:
            ids = self._encoded()
            if len(ids) <= self.limit or len(self.messages) < 3:
                self.cut = max(0, len(ids) - self.limit)
                return ids[-self.limit :]
            self.messages = self.messages[2:]
            self.forgotten += 1

    def _encoded(self) -> list[int]:
        before = [Message(SYSTEM, self.system)] if self.system else []
        text = prompt_text(self.template, [*before, *self.messages])
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return leading(self.tokenizer, text) + ids


def whole_characters(text: str) -> str:
    """Without the replacement marks at the end that stand for a character of which bytes are still to come."""
    return text.rstrip("\ufffd")
