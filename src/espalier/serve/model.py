"""A model that is talked to: how it is asked, when its answers end, and the engine that writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from espalier.data.encode.encoding import encode_texts, leading
from espalier.data.encode.templates import Template, choose_template, prompt_text
from espalier.data.records import ASSISTANT, SYSTEM, USER, Message
from espalier.errors import UserError
from espalier.models import load
from espalier.models.open import OpenModel
from espalier.serve.engine import Engine
from espalier.serve.requests import EngineLimits, Request
from espalier.serve.settings import AnswerSettings
from espalier.serve.text import OPENED

SHARE = 0.5
"""Of the memory that is free when a model has been loaded, for the keys, values and logits of answers."""

_OPENS_THOUGHTS = re.compile(rf"{OPENED}\s*$")


@dataclass(frozen=True)
class Asked:
    """A conversation as the model reads it.

    Attributes:
        ids: of the prompt.
        in_thoughts: whether the prompt has opened the thoughts of the answer.
        forgotten: exchanges at the beginning that were left out, to fit into the context.
        cut: tokens at the beginning of what was left that were left out too.
    """

    ids: tuple[int, ...]
    in_thoughts: bool
    forgotten: int = 0
    cut: int = 0


class ServedModel:
    """What the terminal, the page and the server ask.

    Args:
        name: under which it is known.
        opened: the model.
        template: a name of `choose_template`.
        limits: of its engine; its context is the model's own where it is larger or 0.

    Raises:
        UserError: it has no tokenizer, or the template is unknown.
    """

    def __init__(
        self, name: str, opened: OpenModel, template: str = "auto", limits: EngineLimits | None = None
    ) -> None:
        self.name = name
        self.tokenizer: Any = opened.required_tokenizer
        self.template: Template = choose_template(self.tokenizer, template)
        end = self.tokenizer.encode(self.template.end_of_turn, add_special_tokens=False)[-1:]
        self.ends = frozenset({*load.end_tokens(opened.lm, self.tokenizer), *end})
        self.model = opened.tree_model()
        own = load.context_length(opened.lm)
        limits = EngineLimits(own) if limits is None else limits
        self.context = min(limits.context or own, own)
        free = limits.bytes or int(SHARE * _free_bytes(next(opened.lm.parameters()).device))
        self.engine = Engine(self.model, self.tokenizer, replace(limits, context=self.context, bytes=free))

    def request(self, ids: Sequence[int], settings: AnswerSettings) -> Request:
        """What the engine is asked; an answer's limit of tokens is what is left of the context, if that is less."""
        left = self.context - len(ids)
        if left < 1:
            raise UserError(
                f"the prompt has {len(ids)} tokens, and this model's context is {self.context} with the answer. "
                "Shorten the prompt."
            )
        if settings.max_new_tokens > left:
            settings = replace(settings, max_new_tokens=left)
        return Request(tuple(ids), settings, self.ends)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text that is continued as it stands, with the bos token that the tokenizer adds."""
        return (*leading(self.tokenizer, text), *encode_texts(self.tokenizer, [text])[0])

    def asked(self, messages: Sequence[Message], tools: str | None = None) -> Asked:
        """A whole conversation, written by the template that the model was trained with.

        Args:
            messages: the last one is answered; where it is the assistant's own, it is gone on with.
            tools: JSON text of the functions that may be called.

        Raises:
            UserError: the template cannot write it.
        """
        text = self.prompt(messages, tools)
        return Asked(self.encode(text), bool(_OPENS_THOUGHTS.search(text)))

    def prompt(self, messages: Sequence[Message], tools: str | None = None) -> str:
        """The text that the answer is generated from."""
        begun = messages[-1] if messages and messages[-1].role == ASSISTANT else None
        before = messages[:-1] if begun else messages
        return prompt_text(self.template, before, tools=tools, prefix=begun.content if begun else "")

    def fitted(self, messages: Sequence[Message], room: int) -> Asked:
        """The conversation within the context, less `room` tokens for the answer.

        The oldest exchanges leave first; a system turn at the beginning stays. What is still too long, one question,
        loses its own beginning.
        """
        limit = max(1, self.context - room)
        first = [message for message in messages[:1] if message.role == SYSTEM]
        rest, forgotten = list(messages[len(first) :]), 0
        while True:
            asked = self.asked([*first, *rest])
            later = [at for at, message in enumerate(rest) if message.role == USER and at > 0]
            if len(asked.ids) <= limit or not later:
                cut = max(0, len(asked.ids) - limit)
                return replace(asked, ids=asked.ids[cut:], forgotten=forgotten, cut=cut)
            rest, forgotten = rest[later[0] :], forgotten + 1

    def close(self, seconds: float = 0.0) -> bool:
        """See `Engine.close`."""
        return self.engine.close(seconds)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
