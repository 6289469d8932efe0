"""The formats in which users have their rows: what tells each one, and its reader, in one table at the end.

A reader turns the columns of one row into a `Record` of the kind that the row itself is; `rows` makes of that the kind
that is wanted. Readers raise `Bad` with a reason that names the cure and repair nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from espalier.data.read.columns import (
    CHOSEN,
    COMPLETION,
    CONVERSATIONS,
    REJECTED,
    Row,
    conversation_of,
    first_of,
    has_marked_prompt,
    has_prompt,
    missing,
    prefix_of,
    prompt_of,
)
from espalier.data.read.dialogues import as_hh_dialogue, looks_like_hh
from espalier.data.read.messages import Bad, as_label, as_text, check_order, parted, shown
from espalier.data.read.turns import as_messages
from espalier.data.records import ASSISTANT, KINDS, USER, Answer, Message, Messages, Record

Reader = Callable[[Row, str], Record]
"""(a row, the kind that is wanted of it, which may spare reading some columns) -> a record without its source."""
UNANSWERED = "cut: turns at the end that no answer follows"


def parse_text(row: Row, kind: str) -> Record:
    name = first_of(row, ("text", "content"))
    if name is None:
        raise missing(row, "text")
    return Record.document(as_text(row[name], f"column {name!r}"))


def parse_conversation(row: Row, kind: str) -> Record:
    """A dialogue, split behind its last turn that is not the assistant's; of a chat what is answered."""
    column = first_of(row, CONVERSATIONS)
    if column is None:
        raise missing(row, kind)
    messages = conversation_of(row, column)
    check_order(messages, f"column {column!r}")
    if kind != "chat" or ASSISTANT not in [message.role for message in messages]:
        return _answered(*_parted(messages))
    end = len(messages) - [message.role for message in reversed(messages)].index(ASSISTANT)
    record = _answered(*_parted(messages[:end]))
    return record if end == len(messages) else replace(record, notes=(UNANSWERED,))


def _parted(messages: Messages) -> tuple[Messages, Messages]:
    """A dialogue before and behind its last turn that is not the assistant's."""
    end = len(messages)
    while end and messages[end - 1].role == ASSISTANT:
        end -= 1
    return messages[:end], messages[end:]


def parse_alpaca(row: Row, kind: str) -> Record:
    if row.get("instruction") is None:
        raise missing(row, kind)
    prompt = prompt_of({name: value for name, value in row.items() if name not in CONVERSATIONS})
    output = row.get("output", row.get("completion"))
    if kind == "prompt" or (output is None and "output" not in row and "completion" not in row):
        return _answered(prompt)
    if isinstance(output, list):
        if len(output) != 2:
            raise Bad(
                "broken pair", f"column 'output' is a list of {len(output)}, wanted [accepted, rejected]"
            )
        chosen, rejected = (_said(text, "column 'output'") for text in output)
        return Record.preference(prompt, chosen, rejected)
    return _answered(prompt, _said(output, "column 'output'"))


def parse_prompt_completion(row: Row, kind: str) -> Record:
    prompt = prompt_of(row)
    name = first_of(row, COMPLETION)
    if kind == "prompt" or name is None:
        return Record("prompt", prompt, prefix=prefix_of(row))
    return _answered(prompt, _answer(row, name))


def parse_hh(row: Row, kind: str) -> Record:
    chosen_name, rejected_name = _pair_names(row, kind)
    chosen = as_hh_dialogue(row[chosen_name], f"column {chosen_name!r}")
    if kind == "chat":
        check_order(chosen, f"column {chosen_name!r}", ends_with=ASSISTANT)
        return _answered(chosen[:-1], chosen[-1:])
    rejected = as_hh_dialogue(row[rejected_name], f"column {rejected_name!r}")
    return Record.preference(*parted(chosen, rejected))


def parse_preference(row: Row, kind: str) -> Record:
    """Two answers below a prompt in any layout, or two whole dialogues as lists of messages."""
    chosen_name, rejected_name = _pair_names(row, kind)
    rejected = _answer(row, rejected_name)
    if chosen_name == "messages":  # ms-swift's: the answer that is better ends the dialogue
        chosen = conversation_of(row, "messages")
        if rejected[0].role == ASSISTANT:
            prompt, chosen = _parted(chosen)
            return Record.preference(prompt, chosen, rejected)
        return Record.preference(*parted(chosen, rejected))
    chosen = _answer(row, chosen_name)
    if chosen[0].role == rejected[0].role == ASSISTANT:
        if not has_prompt(row):
            raise missing(row, kind)
        prompt = prompt_of(row)
        if prompt[-1:] == chosen[-1:]:  # the dialogue in `messages` ends with the chosen answer
            prompt = prompt[: -len(chosen)]
        return Record.preference(prompt, chosen, rejected)
    prompt, chosen, rejected = parted(chosen, rejected)
    if has_prompt(row):
        asked = [message.content for message in prompt_of(row) if message.role == USER]
        if not any(message.content in asked for message in prompt if message.role == USER):
            raise Bad(
                "two prompts",
                f"column {chosen_name!r} holds a whole dialogue that does not contain the row's prompt; "
                "keep only the answer in it, or remove the prompt column",
            )
    return Record.preference(prompt, chosen, rejected)


def parse_ranking(row: Row, kind: str) -> Record:
    prompt = prompt_of(row)
    prefix = prefix_of(row)
    if kind == "prompt":
        return Record("prompt", prompt, prefix=prefix)
    answers = row.get("answers")
    if not isinstance(answers, list) or not answers:
        raise Bad(
            "broken ranking",
            f"column 'answers' holds {shown(answers)}, wanted a list of answers with scores",
        )
    ranked = []
    for number, item in enumerate(answers, start=1):
        what = f"column 'answers', answer {number}"
        if not isinstance(item, Mapping) or "answer" not in item or "score" not in item:
            raise Bad(
                "broken ranking", f"{what} is {shown(item)}, wanted {{'answer': text, 'score': number}}"
            )
        score = item["score"]
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise Bad(
                "broken ranking",
                f"{what} has the score {shown(score)}, wanted a finite number without quotes",
            )
        ranked.append(((Message(ASSISTANT, as_text(item["answer"], what), prefix),), float(score)))
    ranked.sort(key=lambda pair: -pair[1])
    return Record.ranking(prompt, ranked)


def parse_kto(row: Row, kind: str) -> Record:
    """A row of another format with a label beside it."""
    if row.get("label") is None:
        raise missing(row, "unpaired")
    label = as_label(row["label"])
    if label is None:
        raise Bad("broken label", f"column 'label' holds {shown(row['label'])}, wanted true or false")
    name = detect({key: value for key, value in row.items() if key != "label"}, "chat")
    record = FORMATS[name].read(row, kind)
    return Record.unpaired(record.prompt, record.answers[0].messages if record.kind == "chat" else (), label)


def _answered(prompt: Messages, answer: Messages = ()) -> Record:
    """A chat; without an answer a prompt."""
    return Record("chat", prompt, (Answer(answer),)) if answer else Record("prompt", prompt)


def _answer(row: Row, name: str) -> Messages:
    """An answer, or a dialogue that ends with it; behind "Assistant:" it begins with a space that belongs to the mark."""
    if looks_like_hh(row[name]):
        return as_hh_dialogue(row[name], f"column {name!r}")
    said = _said(row[name], f"column {name!r}")
    if isinstance(row[name], str) and said[0].role == ASSISTANT and has_marked_prompt(row):
        return (replace(said[0], content=said[0].content.removeprefix(" ")),)
    return said


def _said(value: Any, what: str) -> Messages:
    if isinstance(value, (list, dict)):
        return as_messages(value, what)
    return (Message(ASSISTANT, as_text(value, what)),)


def _pair_names(row: Row, kind: str) -> tuple[str, str]:
    names = _pair(row)
    if names is None:
        raise missing(row, kind)
    return names


def _pair(row: Row) -> tuple[str, str] | None:
    """The columns of the better and of the worse answer; ms-swift has the better one where a chat has its answer."""
    rejected = first_of(row, REJECTED)
    better = (
        (*CHOSEN, "messages", "response")
        if rejected in ("rejected_response", "rejected_messages")
        else CHOSEN
    )
    chosen = first_of(row, better)
    return None if chosen is None or rejected is None else (chosen, rejected)


@dataclass(frozen=True)
class Format:
    """A way to write records down in columns.

    Attributes:
        name: what `format` in a config calls it.
        tells: whether a row, of which this kind is wanted, is in it; asked only when no format before it was told.
        read: its reader.
        kinds: what its rows may be wanted as; where one cannot be that, the error says what is missing.
    """

    name: str
    tells: Callable[[Row, str], bool]
    read: Reader
    kinds: tuple[str, ...] = tuple(kind for kind in KINDS if kind != "text")


def _has(*names: str) -> Callable[[Row, str], bool]:
    return lambda row, kind: first_of(row, names) is not None


def _has_pair(row: Row, kind: str) -> bool:
    return _pair(row) is not None


def _has_hh_pair(row: Row, kind: str) -> bool:
    names = _pair(row)
    return names is not None and not has_prompt(row) and looks_like_hh(row[names[0]])


def _has_label(row: Row, kind: str) -> bool:
    """A number is taken for a judgement only where one is wanted: else it is the class of something."""
    label = row.get("label")
    if label is None or kind == "unpaired":
        return label is not None
    return isinstance(label, bool | str) and as_label(label) is not None


FORMATS = {
    form.name: form
    for form in (
        Format("ranking", lambda row, kind: isinstance(row.get("answers"), list), parse_ranking),
        Format("hh", _has_hh_pair, parse_hh),
        Format("preference", _has_pair, parse_preference),
        Format("kto", _has_label, parse_kto),
        Format("openai", _has("messages"), parse_conversation),
        Format("sharegpt", _has("conversations"), parse_conversation),
        Format("xtuner", _has("conversation"), parse_conversation),
        Format("alpaca", _has("instruction"), parse_alpaca),
        Format("prompt_completion", lambda row, kind: has_prompt(row), parse_prompt_completion),
        Format("text", _has("text", "content"), parse_text, ("text",)),
    )
}
"""All formats, the most telling first."""


def detect(row: Row, kind: str) -> str:
    """The name of the row's format by its columns. Raises `Bad` when there is none that can serve `kind`."""
    for form in FORMATS.values():
        if kind in form.kinds and form.tells(row, kind):
            return form.name
    raise missing(row, kind)


def own_kind(row: Row) -> str:
    """The kind of record that a row is, whatever it is wanted for. Raises `Bad` where its format's reader does."""
    is_document = not any(form.tells(row, "chat") for form in FORMATS.values() if "chat" in form.kinds)
    name = detect(row, "text" if is_document and FORMATS["text"].tells(row, "text") else "chat")
    return FORMATS[name].read(row, "preference").kind  # the kind for which no reader spares a column
