"""How an answer is sampled: one checked value for the terminal, the page and the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from espalier.config.option import option
from espalier.config.ranges import in_range, range_words
from espalier.errors import UserError

MOST_CHOICES = 128
MOST_ALTERNATIVES = 20
COLDEST = 0.001
"""Below it logits divided by the temperature leave the range of numbers."""
_WHOLE = ("max_new_tokens", "top_k", "n", "logprobs", "seed")


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """What a request says of its answer.

    Attributes:
        stop: texts that end an answer, and are not part of it.
        logprobs: None, or of how many likeliest tokens the logprob is told beside each token's own.
        logit_bias: numbers that are added to the logits of tokens, by their ids.
        grammar: what the answer must be, as the text of a Lark grammar of llguidance; "": anything.

    Raises:
        UserError: a value is out of its range; it is named.
    """

    max_new_tokens: int = option(512, "The most tokens of an answer.", min=1)
    temperature: float = option(1.0, "0 takes the likeliest token each time.", min=0, max=100)
    top_p: float = option(1.0, "Only the likeliest tokens of this mass.", min=1e-6, max=1)
    top_k: int = option(0, "Only so many likeliest tokens; 0 is all.", min=0)
    min_p: float = option(0.0, "Only tokens of this share of the likeliest one's probability.", min=0, max=1)
    repetition_penalty: float = option(1.0, "Divides what was said already; 1 is none.", min=0.01, max=100)
    presence_penalty: float = option(0.0, "Subtracted from each token that was said.", min=-2, max=2)
    frequency_penalty: float = option(0.0, "Subtracted for each time it was said.", min=-2, max=2)
    seed: int | None = option(None, "The same seed gives the same answer.", min=-(2**63), max=2**63 - 1)
    n: int = option(1, "Answers to the same prompt.", min=1, max=MOST_CHOICES)
    stop: tuple[str, ...] = ()
    logprobs: int | None = option(None, "Alternatives whose logprobs are told.", min=0, max=MOST_ALTERNATIVES)
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    grammar: str = ""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            words = range_words(one.metadata)
            if not words or (value is None and one.default is None):
                continue
            number = int if one.name in _WHOLE else (int, float)
            if isinstance(value, bool) or not isinstance(value, number) or not in_range(value, one.metadata):
                kind = "a whole number" if one.name in _WHOLE else "a number"
                raise UserError(f"{one.name} {value!r}: wanted {kind} of {words}.")
        if 0 < self.temperature < COLDEST:
            raise UserError(f"temperature {self.temperature!r}: wanted a number of at least {COLDEST}, or 0.")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise UserError(f"stop {list(self.stop)!r}: wanted texts of a character at least.")
        if not all(-100 <= value <= 100 for value in self.logit_bias.values()):
            raise UserError("logit_bias: wanted numbers of at least -100 and at most 100.")

    @property
    def shapes(self) -> tuple[float, float, int, float]:
        """What rows must have in common to be drawn together."""
        return self.temperature, self.top_p, self.top_k, self.min_p
