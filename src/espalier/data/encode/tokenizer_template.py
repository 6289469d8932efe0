"""A tokenizer's own chat template (Jinja) -> pieces of text: what it writes for a conversation, and which of it is learned.

What is trained is what the template itself renders for the whole conversation; nothing is added to it but an end token
where the template has none. Where a turn's words are in that text is found by rendering the conversation once more
with another answer in its place: what both have in common at their ends is not the turn's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from espalier.data.encode.encoding import Piece, joined
from espalier.data.encode.said import (
    CALLS,
    TEXT,
    THOUGHTS,
    beginning,
    common_length,
    is_shown,
    marked,
    parts_of,
    ways_to_write,
)
from espalier.data.encode.turns import TOOL_OF_CALLING, CallForm, as_functions, as_turn, found_form
from espalier.data.records import ASSISTANT, SYSTEM, TOOL, USER, Message
from espalier.errors import UserError
from espalier.rendering import rendered

_OTHER = "⁂"
"""An answer that no template and hardly a conversation holds."""
_OPENS_THOUGHTS = re.compile(r"<think>\s*\Z")
_LAST_ONLY = (
    "train the last answers only (`mask_history: true`), make one record of each answer (`espalier prepare clean FILE "
    "--as turns --out FILE`), or use `template: simple`"
)


@dataclass(frozen=True)
class TokenizerTemplate:
    """The tokenizer's own chat template, its trained spans found by checked differencing.

    An assistant turn begins where the conversation before it, rendered with the generation prompt, ends; that
    text must be a prefix of the whole, so that what is trained is what will be generated. It ends behind the
    template's end mark. The space that a template puts behind the mark is not trained. Where a template has no
    mark, the next turn's special token is it (GLM-4), and the last turn gets the tokenizer's eos token.

    Where a generation begins with ``<think>`` and the template cuts thoughts out of all that it is given (as
    DeepSeek's R1 models do), the last turn is written as it would be generated.
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
        """See `templates.Template.render`.

        Raises:
            UserError: the template hides a turn or tools, or leaves out some of a turn that is to be trained.
        """
        messages = [self._without_text_of_calls(message) for message in messages]
        full = self._text(messages, add_generation_prompt, tools)
        if tools and full == self._text(messages, add_generation_prompt, None):
            raise UserError(
                "the tokenizer's chat template does not show the tools; use a template that does, or `template: simple`, "
                "or remove the column `tools`"
            )
        self._check_nothing_hidden(messages, full, train_from, tools)
        learned = [
            at
            for at, turn in enumerate(messages)
            if at >= train_from and turn.role == ASSISTANT and turn.trained
        ]
        thinking = ""
        if learned and learned[-1] == len(messages) - 1:
            thinking = self._thinking(messages, full, tools)
        pieces: list[Piece] = []
        done = 0
        for index in learned:
            if thinking and index == learned[-1]:
                full = thinking
                start, end, added = len(self._text(messages[:index], True, tools)), len(full), ""
            else:
                start, end, added = self._span(messages, index, full, tools)
                self._check_whole(messages, index, full[start:end], tools)
            pieces += [Piece(full[done:start], False), Piece(full[start:end] + added, True)]
            done = end
        return joined([*pieces, Piece(full[done:], False)])

    @cached_property
    def end_of_turn(self) -> str:
        """See `templates.Template.end_of_turn`."""
        return self._mark or self.tokenizer.eos_token or ""

    @cached_property
    def _mark(self) -> str:
        """What the template writes behind an assistant's text, whether or not more turns follow; "" if nothing.

        Phi-3 closes the whole conversation with one eos more, behind the last turn's mark: that is not the mark.
        """
        probe = (Message(USER, "x"), Message(ASSISTANT, _OTHER))
        full = self._text(probe, False, None)
        closing = full[full.rindex(_OTHER) + 1 :].rstrip() if _OTHER in full else ""
        try:
            longer = self._text((*probe, *probe), False, None)
        except UserError:
            return closing
        after = longer.partition(_OTHER)[2]
        for length in range(common_length(closing, after), 0, -1):
            rest = closing[length:].lstrip()
            if closing[:length].strip() and (not rest or self._special_in(rest)[0] == 0):
                return closing[:length].rstrip()
        return closing

    @cached_property
    def _specials(self) -> tuple[str, ...]:
        """Special tokens that may end a turn; longest first, so that none hides behind its own beginning."""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        found = {*self.tokenizer.all_special_tokens, *added} - {self.tokenizer.bos_token}
        return tuple(sorted(found, key=lambda token: (-len(token), token)))

    def _special_in(self, text: str) -> tuple[int, str]:
        """(place, token) of the first special token in a text; (-1, "") where there is none."""
        places = [(text.find(token), -len(token), token) for token in self._specials]
        place, _, token = min((found for found in places if found[0] >= 0), default=(-1, 0, ""))
        return place, token

    @cached_property
    def _call_form(self) -> CallForm | None:
        """The form in which the template shows calls of tools; None where it has none."""
        tools = json.dumps([TOOL_OF_CALLING])
        return found_form(lambda turns: self._rendered(turns, False, tools))

    def _text(self, messages: Sequence[Message], add_generation_prompt: bool, tools: str | None) -> str:
        form = self._call_form if any(message.calls for message in messages) else None
        turns = [
            {"role": message.role, "content": message.prefix + message.content}
            if message.is_plain
            else as_turn(message, form)
            for message in messages
        ]
        for turn in turns:
            turn["role"] = self._tool_role if turn["role"] == TOOL else turn["role"]
        return self._rendered(turns, add_generation_prompt, tools)

    @cached_property
    def _tool_role(self) -> str:
        """What the template calls a tool: GLM-4's writes any role as a mark, and has one for observations only."""
        has_own = "<|observation|>" in self._specials and f"<|{TOOL}|>" not in self._specials
        names_tool = re.search(r"['\"]tool['\"]", str(self.tokenizer.chat_template))
        return "observation" if has_own and not names_tool else TOOL

    def _rendered(self, turns: list[dict[str, Any]], add_generation_prompt: bool, tools: str | None) -> str:
        remedy = "change these records, use `template: simple`, or another chat_template.jinja"
        functions = as_functions(tools)
        return rendered(
            self.tokenizer, turns, remedy, add_generation_prompt=add_generation_prompt, tools=functions
        )

    def _without_text_of_calls(self, message: Message) -> Message:
        """Calls that a file has as text are either calls, where the template has a form for them, or just that text."""
        if not message.calls_as_text:
            return message
        if self._call_form is None:
            return replace(message, calls="", calls_as_text=False)
        return replace(message, content="", calls_as_text=False)

    def _check_nothing_hidden(
        self, messages: Sequence[Message], full: str, train_from: int, tools: str | None
    ) -> None:
        """Every turn that is only read must be there; thoughts of earlier turns a template may leave out."""
        at = 0
        for number, message in enumerate(messages, start=1):
            if message.role == ASSISTANT:
                if number > train_from and message.trained:
                    continue  # see `_check_whole`
                lost = [what for what, said in parts_of(message) if not is_shown(said, full)]
                lost += (
                    [what for what, _ in self._unmarked(messages, number - 1, tools)] if message.calls else []
                )
                if set(lost) - {THOUGHTS}:
                    raise UserError(_hidden(number, message.role))
                continue
            # Templates may trim a turn's edges or write a tool's result as JSON text; both show it.
            places = [place for text in ways_to_write(message.content) if (place := full.find(text, at)) >= 0]
            if not places:
                raise UserError(_hidden(number, message.role))
            at = min(places) if message.role != SYSTEM else 0  # some templates move the system turn

    def _check_whole(self, messages: Sequence[Message], index: int, trained: str, tools: str | None) -> None:
        """All that is said in a turn must be in the text that is trained."""
        lost = [found for found in parts_of(messages[index]) if not is_shown(found[1], trained)]
        lost = lost or self._unmarked(messages, index, tools)
        if not lost:
            return
        what, part = lost[0]
        opening = self._text(messages[:index], True, tools)
        alone = self._text(messages[: index + 1], False, tools)
        if index < len(messages) - 1 and (
            is_shown(part, alone) or (what == THOUGHTS and _OPENS_THOUGHTS.search(opening))
        ):
            raise UserError(
                f"the tokenizer's chat template rewrites turn {index + 1} (assistant) once more turns follow: it leaves "
                f"out its {what} ({beginning(part)}), so it cannot be trained in place; {_LAST_ONLY}"
            )
        cure = {
            THOUGHTS: "write them into the text as <think>…</think> if the model is to learn them so, remove them, ",
            CALLS: "use a chat_template.jinja that has a form for them, write them into the text, ",
        }.get(what, "change these records, ")
        raise UserError(
            f"the tokenizer's chat template has no place for the {what} of turn {index + 1} (assistant): "
            f"{beginning(part)} would be lost; {cure}or use `template: simple`"
        )

    def _unmarked(self, messages: Sequence[Message], index: int, tools: str | None) -> list[tuple[str, str]]:
        """The parts of a turn that the template does not write, although the same words may stand somewhere."""
        other, marks = marked(messages[index])
        if [what for _, what, _ in marks] == [TEXT]:
            return []
        text = self._text([*messages[:index], other, *messages[index + 1 :]], False, tools)
        return [(what, part) for mark, what, part in marks if mark not in text]

    def _thinking(self, messages: Sequence[Message], full: str, tools: str | None) -> str:
        """The conversation with its last turn as it is generated, behind an opened <think>; "" where `full` shows it."""
        last = messages[-1]
        thoughts, content = last.thoughts, last.content
        if not thoughts and content.lstrip().startswith("<think>"):
            thoughts, _, content = content.partition("<think>")[2].partition("</think>")
            given = True
        else:
            given = False
        if not thoughts.strip() or last.prefix or last.calls:
            return ""
        opening = self._text(messages[:-1], True, tools)
        if full.startswith(opening) or not _OPENS_THOUGHTS.search(opening):
            return ""
        if given:  # as it is written, but for the line break that the opening has already
            answer = f"{thoughts.removeprefix(chr(10)) if opening.endswith(chr(10)) else thoughts}</think>{content}"
        else:
            answer = f"{thoughts.strip(chr(10))}\n</think>\n\n{content}"
        return opening + answer + self.end_of_turn

    def _span(
        self, messages: Sequence[Message], index: int, full: str, tools: str | None
    ) -> tuple[int, int, str]:
        """Where the own words of turn `index` begin in `full`, where they end with their mark, and a mark to add."""
        opening = self._text(messages[:index], True, tools)
        whole = self._verbatim(messages[index], full, opening)
        if whole is not None:
            return *whole, ""
        begin, behind = self._own(messages, index, full, tools)
        start = self._start(messages, index, full, opening, begin, tools)
        behind = max(behind, start)
        rest = full[behind:]
        mark = rest.find(self._mark) if self._mark else -1
        place, special = self._special_in(rest)
        if mark >= 0 and (place < 0 or place >= mark or messages[index].calls):
            return start, behind + mark + len(self._mark), ""
        if place >= 0 and not rest[:place].strip():
            return start, behind + place + len(special), ""
        return start, behind, (self.tokenizer.eos_token or "") if index == len(messages) - 1 else ""

    def _verbatim(self, message: Message, full: str, opening: str) -> tuple[int, int] | None:
        """The span of a turn that is written as it is behind what it is generated from; the usual case, found at once."""
        start = len(opening) + len(message.prefix)
        closed = message.content + self._mark
        as_it_is = self._mark and not message.thoughts and not message.calls and full.startswith(opening)
        if not as_it_is or not full.startswith(message.prefix + closed, len(opening)):
            return None
        return start, start + len(closed)

    def _own(self, messages: Sequence[Message], index: int, full: str, tools: str | None) -> tuple[int, int]:
        """Where what depends on the words of turn `index` begins and ends in `full`."""
        message = messages[index]
        other = _OTHER if _OTHER not in message.text else f"{_OTHER}{_OTHER}{index}"
        variants = [Message(ASSISTANT, other, message.prefix)]
        if message.calls:  # some templates take a tool's result only behind a call
            call = [
                {
                    "id": "abcdefghi",
                    "type": "function",
                    "function": {"name": other, "arguments": {other: other}},
                }
            ]
            called = json.loads(message.calls)
            ids = [{**call[0], "id": one["id"]} if "id" in one else call[0] for one in called]
            variants.append(
                replace(message, content="", thoughts="", calls=json.dumps(ids), calls_as_text=False)
            )
        for variant in variants:
            turns = [*messages[:index], variant, *messages[index + 1 :]]
            try:
                with_other = self._text(turns, False, tools)
            except UserError:
                continue
            begin = common_length(full, with_other)
            same = common_length(full[begin:][::-1], with_other[begin:][::-1])
            return begin, len(full) - same
        raise UserError(
            f"the tokenizer's chat template does not say where turn {index + 1} (assistant) ends; {_LAST_ONLY}"
        )

    def _start(
        self, messages: Sequence[Message], index: int, full: str, opening: str, begin: int, tools: str | None
    ) -> int:
        """Where the trained text of turn `index` begins; `begin`: where its words do."""
        prefix = messages[index].prefix
        if not full.startswith(opening):
            # Some templates open an answer with a <think> that they leave out of all turns but the last.
            begin -= len(prefix)
            plain = len(self._text(messages[:index], False, tools)) <= begin <= common_length(opening, full)
            if index == len(messages) - 1 or not plain or not opening[begin:].lstrip().startswith("<think>"):
                raise UserError(
                    f"the tokenizer's chat template writes what stands before turn {index + 1} (assistant) differently "
                    "when an answer is to be generated, so training would not match generation; use `template: "
                    "simple`, or a chat_template.jinja that does not rewrite earlier turns"
                    + _thoughts_wanted(opening, messages[index])
                )
            opening = full[:begin]
        if not full.startswith(prefix, len(opening)):
            raise UserError(
                f"the tokenizer's chat template changes the given beginning {prefix!r} of turn {index + 1}; remove the "
                "prefix's outer white space, or use `template: simple`"
            )
        return len(opening) + len(prefix)


def _thoughts_wanted(opening: str, message: Message) -> str:
    if not _OPENS_THOUGHTS.search(opening) or message.thoughts:
        return ""
    return "; it opens answers with <think>: answers that begin with their thoughts (`reasoning_content`) can be trained"


def _hidden(number: int, role: str) -> str:
    return (
        f"the tokenizer's chat template does not show turn {number} ({role}); the model would be trained on an answer to "
        "what it cannot see; remove such turns, or use `template: simple`"
    )
