"""The formats in which users have their rows: what tells each one, and its reader, in one table at the end.

A reader turns the columns of one row into a `Record` of the kind that the row itself is; `rows` makes of that the kind
that is wanted. Readers raise `Bad` with a reason that names the cure and repair nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from espalier.data.read.messages import (
    Bad,
    as_hh_dialogue,
    as_history,
    as_label,
    as_messages,
    as_text,
    check_order,
    looks_like_hh,
    parted,
    shown,
)
from espalier.data.records import ASSISTANT, KINDS, SYSTEM, USER, Answer, Message, Messages, Record

Row = Mapping[str, Any]
Reader = Callable[[Row, str], Record]
"""(a row, the kind that is wanted of it, which may spare reading some columns) -> a record without its source."""

_CHOSEN = ("chosen", "selected", "response_chosen")
_REJECTED = ("rejected", "response_rejected")
_QUESTION = ("prompt", "question", "query", "problem")
_COMPLETION = ("completion", "response", "answer", "solution", "target")
COLUMNS = {
    "text": "`text`",
    "chat": "`messages`, `conversations`, `instruction` and `output`, or `prompt` and `completion`",
    "preference": "`prompt`, `chosen` and `rejected` (or `answers` with scores)",
    "ranking": "`prompt` and `answers` with scores (or `chosen` and `rejected`)",
    "prompt": "`prompt`, `messages`, `conversations` or `instruction`",
    "unpaired": "`messages` (or `prompt` and `completion`) and `label`",
}
"""Kind -> the columns that it can be read from, for messages."""


def parse_text(row: Row, kind: str) -> Record:
    name = first_of(row, ("text", "content"))
    if name is None:
        raise missing(row, "text")
    return Record.document(as_text(row[name], f"column {name!r}"))


def parse_openai(row: Row, kind: str) -> Record:
    return _conversation(row, "messages", kind)


def parse_sharegpt(row: Row, kind: str) -> Record:
    return _conversation(row, "conversations", kind)


def _conversation(row: Row, column: str, kind: str) -> Record:
    """A dialogue, split behind its last turn that is not the assistant's."""
    if column not in row:
        raise missing(row, kind)
    messages = _with_system(row, as_messages(row[column], f"column {column!r}"))
    check_order(messages, f"column {column!r}")
    end = len(messages)
    while end and messages[end - 1].role == ASSISTANT:
        end -= 1
    return _answered(messages[:end], messages[end:])


def parse_alpaca(row: Row, kind: str) -> Record:
    if "instruction" not in row:
        raise missing(row, kind)
    prompt = _prompt(row)
    output = row.get("output", row.get("completion"))
    if kind == "prompt" or (output is None and "output" not in row and "completion" not in row):
        return _answered(prompt)
    if isinstance(output, list):
        if len(output) != 2:
            raise Bad(
                "broken pair", f"column 'output' is a list of {len(output)}, wanted [accepted, rejected]"
            )
        chosen, rejected = (_answer(text, "column 'output'") for text in output)
        return Record.preference(prompt, chosen, rejected)
    return _answered(prompt, _answer(output, "column 'output'"))


def parse_prompt_completion(row: Row, kind: str) -> Record:
    prompt = _prompt(row)
    name = first_of(row, _COMPLETION)
    if kind == "prompt" or name is None:
        return Record("prompt", prompt, prefix=_prefix(row))
    return _answered(prompt, _answer(row[name], f"column {name!r}"))


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
    chosen = _answer(row[chosen_name], f"column {chosen_name!r}")
    rejected = _answer(row[rejected_name], f"column {rejected_name!r}")
    has_prompt = first_of(row, (*_QUESTION, "instruction", "conversations")) is not None
    if chosen[0].role == rejected[0].role == ASSISTANT:
        if not has_prompt:
            raise missing(row, kind)
        return Record.preference(_prompt(row), chosen, rejected)
    prompt, chosen, rejected = parted(chosen, rejected)
    if has_prompt:
        asked = [message.content for message in _prompt(row) if message.role == USER]
        if not any(message.content in asked for message in prompt if message.role == USER):
            raise Bad(
                "two prompts",
                f"column {chosen_name!r} holds a whole dialogue that does not contain the row's prompt; "
                "keep only the answer in it, or remove the prompt column",
            )
    return Record.preference(prompt, chosen, rejected)


def parse_ranking(row: Row, kind: str) -> Record:
    prompt = _prompt(row)
    prefix = _prefix(row)
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
    if "label" not in row:
        raise missing(row, "unpaired")
    label = as_label(row["label"])
    if label is None:
        raise Bad("broken label", f"column 'label' holds {shown(row['label'])}, wanted true or false")
    name = detect({key: value for key, value in row.items() if key != "label"}, "chat")
    record = FORMATS[name].read(row, kind)
    return Record.unpaired(record.prompt, record.answers[0].messages if record.kind == "chat" else (), label)


def _prompt(row: Row) -> Messages:
    """The prompt of a row whose answers stand in columns of their own: [system], earlier turns, the question."""
    if "conversations" in row:
        return _with_system(row, as_messages(row["conversations"], "column 'conversations'"))
    if "instruction" in row:
        names = ["instruction", "input"]
    else:
        first = first_of(row, _QUESTION) or ("input" if "input" in row and "target" in row else None)
        if first is None:
            raise missing(row, "prompt")
        if not isinstance(row[first], str) and row[first] is not None:
            return _with_system(row, as_messages(row[first], f"column {first!r}"))
        # LLaMA-Factory's own names: `prompt` is the instruction and `query` its input. A question about a passage
        # cannot be answered without it.
        names = {"prompt": ["prompt", "query"], "question": ["context", "question"]}.get(first, [first])
    texts = [as_text(row.get(name), f"column {name!r}", may_be_empty=True) for name in names]
    question = "\n".join(text for text in texts if text)
    asked = names[names[0] == "context"]
    if not question.strip():
        raise Bad("empty prompt", f"column {asked!r} is empty; fill it in or remove the record")
    return _with_system(row, (*as_history(row.get("history")), Message(USER, question)))


def _with_system(row: Row, messages: Messages) -> Messages:
    system = as_text(row.get("system"), "column 'system'", may_be_empty=True)
    if not system or messages[0].role == SYSTEM:
        return messages
    return (Message(SYSTEM, system), *messages)


def _prefix(row: Row) -> str:
    return as_text(row.get("prefix"), "column 'prefix'", may_be_empty=True)


def _answered(prompt: Messages, answer: Messages = ()) -> Record:
    """A chat; without an answer a prompt."""
    return Record("chat", prompt, (Answer(answer),)) if answer else Record("prompt", prompt)


def _answer(value: Any, what: str) -> Messages:
    if isinstance(value, (list, dict)):
        return as_messages(value, what)
    return (Message(ASSISTANT, as_text(value, what)),)


def _pair_names(row: Row, kind: str) -> tuple[str, str]:
    chosen, rejected = first_of(row, _CHOSEN), first_of(row, _REJECTED)
    if chosen is None or rejected is None:
        raise missing(row, kind)
    return chosen, rejected


def first_of(row: Row, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in row), None)


def columns_of(row: Row) -> str:
    """The names of the first twelve columns, each cut to 40 characters, as a message may show them."""
    names = [name if len(name) <= 40 else f"{name[:37]}..." for name in map(str, row)]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(f"`{name}`" for name in names[:12]) + more or "(none)"


def missing(row: Row, kind: str) -> Bad:
    return Bad(
        "missing column",
        f"found the columns {columns_of(row)}, wanted {COLUMNS[kind]}; rename yours with `columns: {{name here: name there}}`",
    )


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
    return lambda row, kind: any(name in row for name in names)


def _has_pair(row: Row, kind: str) -> bool:
    return first_of(row, _CHOSEN) is not None and first_of(row, _REJECTED) is not None


def _has_hh_pair(row: Row, kind: str) -> bool:
    if not _has_pair(row, kind) or any(name in row for name in (*_QUESTION, "instruction", "conversations")):
        return False
    return looks_like_hh(row[first_of(row, _CHOSEN) or ""])


def _has_label(row: Row, kind: str) -> bool:
    return "label" in row and (kind == "unpaired" or as_label(row["label"]) is not None)


def _has_question(row: Row, kind: str) -> bool:
    return first_of(row, _QUESTION) is not None or ("input" in row and "target" in row)


FORMATS = {
    form.name: form
    for form in (
        Format("ranking", lambda row, kind: isinstance(row.get("answers"), list), parse_ranking),
        Format("hh", _has_hh_pair, parse_hh),
        Format("preference", _has_pair, parse_preference),
        Format("kto", _has_label, parse_kto),
        Format("openai", _has("messages"), parse_openai),
        Format("sharegpt", _has("conversations"), parse_sharegpt),
        Format("alpaca", _has("instruction"), parse_alpaca),
        Format("prompt_completion", _has_question, parse_prompt_completion),
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
