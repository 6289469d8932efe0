"""What an engine is asked, what it tells, and what it may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from espalier.errors import UserError
from espalier.serve.drawing import Token
from espalier.serve.settings import AnswerSettings


@dataclass(frozen=True)
class EngineLimits:
    """What one engine may take.

    Attributes:
        context: tokens of a prompt with its answer.
        rows: answers that are written at a time.
        waiting: requests that wait for a place; one more is refused.
        seconds: for one request from the moment it came; 0: no limit.
        prefix_bytes: of keys and values that are kept for prompts with the same beginning; 0 keeps none.
        bytes: of keys, values and logits of all answers at a time; 0: not counted.
        banned: words at which an answer ends, before they are said.
    """

    context: int
    rows: int = 32
    waiting: int = 64
    seconds: float = 0.0
    prefix_bytes: int = 256 << 20
    bytes: int = 0
    banned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What is asked: ids of the prompt, how the answer is sampled, and the tokens that end it."""

    ids: tuple[int, ...]
    settings: AnswerSettings
    ends: frozenset[int]


@dataclass(frozen=True, slots=True)
class TextPiece:
    """More text of an answer, and the tokens that it comes from."""

    choice: int
    text: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """An answer is complete: by an end token or stop text (`stop`), at its limit of tokens (`length`), or before a word
    that may not be said (`banned`).

    `tokens` were sampled, an end token included.
    """

    choice: int
    reason: Literal["stop", "length", "banned"]
    tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no more of a request: it took too long, the model failed, or it was given up."""

    reason: Literal["timeout", "model", "cancelled"]
    message: str


Event = TextPiece | Finished | Failed
Tell = Callable[[Event], None]


class Full(UserError):
    """So many requests wait already that one more is not taken.

    Attributes:
        seconds: after which it is worth while to ask again.
    """

    def __init__(self, waiting: int, seconds: float) -> None:
        super().__init__(f"{waiting} requests are waiting already. Ask again in {seconds:.0f} s.")
        self.seconds = seconds


@dataclass
class Counts:
    """Of one engine since it began."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    tokens: int = 0


@dataclass(eq=False)
class Ticket:
    """A request that was taken; `cancel` it when nobody waits for its answer any longer.

    Attributes:
        reused: tokens of its prompt that were known from another, once its answer has begun.
    """

    request: Request
    tell: Tell
    begun: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    open: int = 0
    bytes: int = 0
    reused: int = 0

    def cancel(self) -> None:
        self.cancelled = True
