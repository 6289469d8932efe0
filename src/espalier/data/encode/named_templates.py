"""Templates by name, for models whose tokenizer brings none: a table (`named_templates.yaml`) and one way to write it.

What a table cannot say (a turn that is written differently because of a later one) is left to a tokenizer's own
Jinja template. Tools, which none of these formats knows, stand as `Tools:` behind the system text, and calls of them as
JSON behind an answer's text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from espalier.data.encode.encoding import Piece, joined
from espalier.data.records import ASSISTANT, SYSTEM, TOOL, USER, Message
from espalier.errors import UserError

SLOT = re.compile(r"\{(content|system|n)\}")
NAME = "{#- espalier: %s -#}"
"""The beginning of a chat template that stands for one of these (`jinja_form`)."""
_NAME = re.compile(re.escape(NAME).replace("%s", r"([\w.-]+)"))


@dataclass(frozen=True)
class Form:
    """One entry of the table.

    >>> forms()["ziya"].user
    '<human>:{content}\\n'
    """

    user: str
    assistant: str
    system: str = ""
    system_form: str | None = None
    first_user: str | None = None
    tool: str | None = None
    end: str | None = None
    thoughts: str | None = None
    separator: str = ""


@cache
def forms() -> dict[str, Form]:
    """Name -> form, of all of the table."""
    table: dict[str, dict[str, Any]] = yaml.safe_load(
        files("espalier.data.encode").joinpath("named_templates.yaml").read_text("utf-8")
    )
    known = {field.name for field in fields(Form)}

    def whole(name: str) -> dict[str, Any]:
        own = dict(table[name])
        like = own.pop("like", None)
        return {**(whole(like) if like else {}), **own}

    table_of_forms = {}
    for name in table:
        entry = whole(name)
        assert entry.keys() <= known, (name, entry.keys() - known)
        table_of_forms[name] = Form(**entry)
    return table_of_forms


@dataclass(frozen=True)
class NamedTemplate:
    """A form with the token that ends an answer.

    >>> template = NamedTemplate(forms()["ziya"], "</s>")
    >>> [piece.text for piece in template.render([Message("user", "2+3=?"), Message("assistant", "5")])]
    ['<human>:2+3=?\\n<bot>:', '5</s>']
    """

    form: Form
    end_of_turn: str

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: str | None = None,
        train_from: int = 0,
    ) -> list[Piece]:
        """See `templates.Template.render`. Nothing stands behind the last answer's end."""
        form = self.form
        system = form.system
        if messages and messages[0].role == SYSTEM:
            system = messages[0].content
        if tools:
            system += f"{chr(10) if system else ''}Tools:\n{tools}"
        into_user = form.first_user is not None
        pieces = [Piece(self._system(system), False)] if system and not into_user else []
        asked = 0
        after_answer = False
        for index, message in enumerate(messages):
            if message.role == SYSTEM:
                continue
            if after_answer:
                pieces.append(Piece(form.separator, False))
            after_answer = message.role == ASSISTANT
            if message.role == ASSISTANT:
                pieces.append(Piece(form.assistant + message.prefix, False))
                learned = index >= train_from and message.trained
                answer = self._thoughts(message, index, learned) + message.written + self.end_of_turn
                pieces.append(Piece(answer, learned))
                continue
            written = form.tool if message.role == TOOL and form.tool is not None else form.user
            if message.role == USER:
                asked += 1
                if asked == 1 and system and form.first_user is not None:
                    written = form.first_user
            pieces.append(
                Piece(_filled(written, content=message.content, system=system, n=str(asked)), False)
            )
        if add_generation_prompt:
            pieces.append(Piece((form.separator if after_answer else "") + form.assistant, False))
        return joined(pieces)

    def _thoughts(self, message: Message, index: int, learned: bool) -> str:
        """What the form writes of a turn's thoughts; where it has no place for them they may not be lost from what is learned."""
        form = self.form.thoughts
        if message.thoughts and form is not None:
            return _filled(form, content=message.thoughts)
        if message.thoughts and learned:
            raise UserError(
                f"the template has no place for the thoughts of turn {index + 1} (assistant); write them into the text as "
                "<think>…</think> if the model is to learn them so, remove them, or use `template: qwen3` or `simple`"
            )
        return ""

    def _system(self, text: str) -> str:
        form = self.form.system_form
        return text + self.form.separator if form is None else _filled(form, content=text)


def name_in(chat_template: object) -> str | None:
    """The named template, or `simple`, that a tokenizer's chat template stands for; None of any other."""
    match = _NAME.match(chat_template) if isinstance(chat_template, str) else None
    return match[1] if match else None


def named_template(tokenizer: Any, name: str) -> NamedTemplate:
    """The template `name` for a tokenizer.

    Raises `UserError` where the token that ends an answer is none of the tokenizer's: an answer would end with
    several tokens, and generation would stop at the last of them wherever it stands.
    """
    form = forms()[name]
    end = form.end or tokenizer.eos_token
    whose = f"the tokenizer of {tokenizer.name_or_path or 'this model'}"
    if end is None:
        raise UserError(
            f"template: {name}, but {whose} names no eos_token to end an answer with; set eos_token in its "
            "tokenizer_config.json"
        )
    number = tokenizer.convert_tokens_to_ids(end)
    if number is None or (number == tokenizer.unk_token_id and end != tokenizer.unk_token):
        raise UserError(
            f"template: {name} ends an answer with {end}, which is no token of {whose}; use a template that ends with "
            f"the eos token ({tokenizer.eos_token}), such as `template: default`, or add the token to the tokenizer"
        )
    return NamedTemplate(form, end)


def _filled(form: str, **values: str) -> str:
    """The form with its slots filled, in one pass, so that a slot inside a turn's text stays text."""
    return SLOT.sub(lambda slot: values.get(slot.group(1), slot.group()), form)
