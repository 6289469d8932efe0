"""Messages -> pieces of text, each trained or not.

A template writes a conversation down and knows which of its characters are the assistant's own: its text and
the mark that ends its turn, in every assistant turn. Nothing is stripped silently; where a model's own template
hides a turn or rewrites an earlier one so that no honest span exists, that is an error with its cure.
Turning pieces into tokens is `tokenise`'s business.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from espalier.data.encode.encoding import Piece, joined
from espalier.data.encode.named_templates import forms, named_template
from espalier.data.records import ASSISTANT, SYSTEM, TOOL, USER, Message
from espalier.errors import UserError
from espalier.rendering import rendered


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
        """The conversation as pieces; assistant turns from index `train_from` on are trained, end mark included.

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
    known = ["auto", "tokenizer", "simple", *forms()]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "use `auto` for the model's own template"
    raise UserError(f"unknown template {name!r}; {hint} Known are {', '.join(known)}")


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
    prompt. Tools are a first turn `Tools:`. A bos token is put in front by `tokenise` if the tokenizer has one.

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
                pieces.append(Piece(message.content + self.end_of_turn, index >= train_from))
                pieces.append(Piece("\n", False))
            else:
                pieces.append(Piece(f"{speaker}{message.content}\n", False))
        if add_generation_prompt:
            pieces.append(Piece(self._SPEAKERS[ASSISTANT], False))
        return joined(pieces)


@dataclass(frozen=True)
class TokenizerTemplate:
    """The tokenizer's own chat template (Jinja), its trained spans found by checked prefix differencing.

    An assistant turn begins where the conversation before it, rendered with the generation prompt, ends; that
    text must be a prefix of the whole, so that what is trained is what will be generated. It ends behind the
    template's end mark. The space that a template puts behind the mark is not trained. Where a template has no
    mark, the next turn's special token is it (GLM-4), and the last turn gets the tokenizer's eos token.
    """

    tokenizer: Any

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: str | None = None,
        train_from: int = 0,
    ) -> list[Piece]:
        """See `Template.render`. Raises `UserError` where the template hides or rewrites a turn."""
        full = self._text(messages, add_generation_prompt, tools)
        self._check_nothing_hidden(messages, full)
        pieces: list[Piece] = []
        done = 0
        for index in range(train_from, len(messages)):
            if messages[index].role != ASSISTANT:
                continue
            start = self._start(messages, index, full, tools)
            behind = start + len(messages[index].content)
            if self._mark and full.startswith(messages[index].content + self._mark, start):
                end, added = behind + len(self._mark), ""  # equals _end, without rendering once more
            else:
                end, added = self._end(messages, index, full, start, tools)
            pieces += [Piece(full[done:start], False), Piece(full[start:end] + added, True)]
            done = end
        return joined([*pieces, Piece(full[done:], False)])

    @cached_property
    def end_of_turn(self) -> str:
        """See `Template.end_of_turn`."""
        return self._mark or self.tokenizer.eos_token or ""

    @cached_property
    def _mark(self) -> str:
        """What the template writes behind an assistant's text, whether or not more turns follow; "" if nothing.

        Phi-3 closes the whole conversation with one eos more, behind the last turn's mark: that is not the mark.
        """
        probe = (Message(USER, "x"), Message(ASSISTANT, "y"))
        full = self._text(probe, False, None)
        start = self._start(probe, 1, full, None)
        end, added = self._end(probe, 1, full, start, None)
        behind = full.index("y", start) + 1
        closing = "" if added else full[behind:end]
        try:
            longer = self._text((*probe, *probe), False, None)
        except UserError:
            return closing
        if not longer.startswith(full[:behind]):
            return closing
        for length in range(_common(closing, longer[behind:]), 0, -1):
            rest = closing[length:].lstrip()
            if closing[:length].strip() and (not rest or self._special_at(rest, 0)):
                return closing[:length].rstrip()
        return closing

    @cached_property
    def _specials(self) -> tuple[str, ...]:
        """Special tokens that may end a turn; longest first, so that none hides behind its own beginning."""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        found = {*self.tokenizer.all_special_tokens, *added} - {self.tokenizer.bos_token}
        return tuple(sorted(found, key=lambda token: (-len(token), token)))

    def _text(self, messages: Sequence[Message], add_generation_prompt: bool, tools: str | None) -> str:
        turns = [{"role": message.role, "content": message.prefix + message.content} for message in messages]
        remedy = "change these records, use `template: simple`, or another chat_template.jinja"
        return rendered(
            self.tokenizer,
            turns,
            remedy,
            add_generation_prompt=add_generation_prompt,
            tools=_functions(tools),
        )

    def _check_nothing_hidden(self, messages: Sequence[Message], full: str) -> None:
        at = 0
        for number, message in enumerate(messages, start=1):
            if message.role == ASSISTANT:
                continue
            # Templates may trim a turn's edges or write a tool's result as JSON text; both show it.
            written = (message.content.strip(), json.dumps(message.content, ensure_ascii=False)[1:-1])
            places = [place for place in (full.find(text, at) for text in written) if place >= 0]
            if not places:
                raise UserError(
                    f"the tokenizer's chat template does not show turn {number} ({message.role}); the model would be "
                    "trained on an answer to what it cannot see; remove such turns, or use `template: simple`"
                )
            at = min(places) if message.role != SYSTEM else 0  # some templates move the system turn

    def _start(self, messages: Sequence[Message], index: int, full: str, tools: str | None) -> int:
        opening = self._text(messages[:index], True, tools)
        if not full.startswith(opening):
            # Some templates open an answer with a <think> that they leave out of all turns but the last.
            common = _common(opening, full)
            plain = len(self._text(messages[:index], False, tools))
            place = full.find(messages[index].prefix + messages[index].content, plain)
            if index == len(messages) - 1 or not plain <= place <= common:
                raise UserError(
                    f"the tokenizer's chat template writes what stands before turn {index + 1} (assistant) differently "
                    "when an answer is to be generated, so training would not match generation; use `template: "
                    "simple`, or a chat_template.jinja that does not rewrite earlier turns"
                )
            opening = full[:place]
        start = len(opening)
        prefix = messages[index].prefix
        if not full.startswith(prefix, start):
            raise UserError(
                f"the tokenizer's chat template changes the given beginning {prefix!r} of turn {index + 1}; remove the "
                "prefix's outer white space, or use `template: simple`"
            )
        return start + len(prefix)

    def _end(
        self, messages: Sequence[Message], index: int, full: str, start: int, tools: str | None
    ) -> tuple[int, str]:
        """Where turn `index`, whose own text begins at `start`, ends in `full`, and an end mark to add to it."""
        content = messages[index].content
        last = index == len(messages) - 1
        turn_text = full if last else self._text(messages[: index + 1], False, tools)
        if full.startswith(turn_text):
            turn_end = len(turn_text)
        else:
            # The template treats its last turn otherwise: it adds an empty <think> before, or another mark behind.
            place = full.find(content, start)
            behind = place + len(content)
            if place < 0 or (place > start and not turn_text.startswith(full[:behind])):
                raise UserError(
                    f"the tokenizer's chat template rewrites turn {index + 1} (assistant) once more turns follow "
                    "(thinking removed?), so it cannot be trained in place; make one record of each answer, or use "
                    "`template: simple`"
                )
            turn_end = behind + len(self._special_at(full, behind))
        content_at = full.find(content, start, turn_end)
        if content_at < 0:
            content = content.strip()
            content_at = full.find(content, start, turn_end)
        behind = content_at + len(content) if content_at >= 0 else turn_end
        closing = full[behind:turn_end].rstrip()
        if closing:
            return behind + len(closing), ""
        if last:
            return behind, self.tokenizer.eos_token or ""
        mark = self._special_at(full, turn_end)
        return (turn_end + len(mark) if mark else behind), ""

    def _special_at(self, text: str, place: int) -> str:
        return next((token for token in self._specials if text.startswith(token, place)), "")


def _functions(tools: str | None) -> list[Any] | None:
    """JSON text -> functions in OpenAI's wrapping, which chat templates expect."""
    if not tools:
        return None
    loaded = json.loads(tools)
    functions = loaded if isinstance(loaded, list) else [loaded]
    return [
        tool if not isinstance(tool, dict) or "type" in tool else {"type": "function", "function": tool}
        for tool in functions
    ]


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
