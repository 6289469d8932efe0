"""Messages -> pieces of text, each trained or not.

A template writes a conversation down and knows which of its characters are the assistant's own: its text and
the mark that ends its turn, in every assistant turn. Nothing is stripped silently; where a model's own template
hides a turn or leaves out some of one that is to be trained, that is an error with its cure (`tokenizer_template`).
Turning pieces into tokens is `tokenise`'s business.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from espalier.data.encode.encoding import Piece, joined
from espalier.data.encode.named_templates import forms, name_in, named_template
from espalier.data.encode.tokenizer_template import TokenizerTemplate
from espalier.data.records import ASSISTANT, SYSTEM, TOOL, USER, Message
from espalier.errors import UserError


class Template(Protocol):
    """How conversations are written for one model."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: str | None = None,
        train_from: int = 0,
    ) -> list[Piece]:
        """The conversation as pieces; assistant turns from index `train_from` on are trained, end mark included,
        but for those that say they are only read.

        `add_generation_prompt` adds what stands before an assistant's answer. `tools` is JSON text.
        """
        ...

    @property
    def end_of_turn(self) -> str:
        """The text that ends an assistant's turn; generation stops at its last token."""
        ...


def prompt_text(
    template: Template, messages: Sequence[Message], *, tools: str | None = None, prefix: str = ""
) -> str:
    """The text that an answer is generated from; it is what stands before the trained text in training."""
    pieces = template.render(messages, add_generation_prompt=True, tools=tools, train_from=len(messages))
    return "".join(piece.text for piece in pieces) + prefix


def choose_template(tokenizer: Any, name: str = "auto") -> Template:
    """`tokenizer` (the tokenizer's own chat template), `simple`, `auto` (the first if there is one), or a named form.

    Raises `UserError` for an unknown name, for `tokenizer` without a chat template, for a missing end token.
    """
    if name in ("auto", "tokenizer") and (known := name_in(tokenizer.chat_template)) is not None:
        name = known  # what it was trained with, by the code that it was trained with
    if name == "auto":
        name = "tokenizer" if tokenizer.chat_template else "simple"
    if name == "tokenizer":
        if not tokenizer.chat_template:
            raise UserError(
                f"template: tokenizer, but the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat "
                "template; use `template: simple`, or put a chat_template.jinja into the model's folder"
            )
        return TokenizerTemplate(tokenizer)
    if name == "simple":
        if tokenizer.eos_token is None:
            raise UserError(
                f"template: simple, but the tokenizer of {tokenizer.name_or_path or 'this model'} names no eos_token "
                "to end a turn with; set eos_token in its tokenizer_config.json"
            )
        return SimpleTemplate(tokenizer.eos_token)
    if name in forms():
        return named_template(tokenizer, name)
    names = ["auto", "tokenizer", "simple", *forms()]
    near = difflib.get_close_matches(name, names, n=1) or [n for n in names if name.startswith(n)][-1:]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"unknown template {name!r}.{hint} `auto` is the model's own, which newer models bring along. Known are "
        f"{', '.join(names)}."
    )


@dataclass(frozen=True)
class SimpleTemplate:
    """For models without a chat template: each turn below a line with its speaker, an answer ended by eos.

        System:
        You are kind.
        User:
        春眠不觉晓，下一句？
        Assistant:
        处处闻啼鸟。</s>

    The answer begins on a line of its own because a byte-level BPE joins a space with the word that follows
    it, but a line break only with another: so the answer's first token is the same in training and after a
    prompt. Tools are a first turn `Tools:`, calls of them JSON behind the answer's text, thoughts stand before it
    between `<think>` and `</think>`. A bos token is put in front by `tokenise` if the tokenizer has one.

    >>> [
    ...     piece.text
    ...     for piece in SimpleTemplate("</s>").render([Message("user", "2+3=?"), Message("assistant", "5")])
    ... ]
    ['User:\\n2+3=?\\nAssistant:\\n', '5</s>', '\\n']
    """

    end_of_turn: str

    _SPEAKERS = {SYSTEM: "System:\n", USER: "User:\n", ASSISTANT: "Assistant:\n", TOOL: "Tool:\n"}

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: str | None = None,
        train_from: int = 0,
    ) -> list[Piece]:
        """See `Template.render`."""
        pieces = [Piece(f"Tools:\n{tools}\n", False)] if tools else []
        for index, message in enumerate(messages):
            speaker = self._SPEAKERS[message.role]
            if message.role == ASSISTANT:
                pieces.append(Piece(speaker + message.prefix, False))
                thoughts = f"<think>\n{message.thoughts}\n</think>\n\n" if message.thoughts else ""
                learned = index >= train_from and message.trained
                pieces.append(Piece(thoughts + message.written + self.end_of_turn, learned))
                pieces.append(Piece("\n", False))
            else:
                pieces.append(Piece(f"{speaker}{message.content}\n", False))
        if add_generation_prompt:
            pieces.append(Piece(self._SPEAKERS[ASSISTANT], False))
        return joined(pieces)
