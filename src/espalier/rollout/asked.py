"""What is asked of the policy, and all that a reward may see of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ask:
    """A prompt to sample from.

    Attributes:
        tokens: its ids.
        text: its last turn.
        reference: what an answer is compared with.
        source: "FILE:LINE".
        messages: all its turns, with OpenAI's keys.
        columns: what its record holds beside the conversation, by the names in the file.
        prefix: how an answer must begin; it stands in the tokens, and not in the answer.
    """

    tokens: list[int]
    text: str
    reference: str | None = None
    source: str = ""
    messages: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    columns: Mapping[str, Any] = field(default_factory=dict, repr=False)
    prefix: str = ""
