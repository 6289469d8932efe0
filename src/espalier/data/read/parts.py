"""The columns of one row -> `Parts`: a prompt and what follows it, whatever the row is wanted for.

One parser for each family of columns. They raise `Bad` with a reason that names the cure and repair nothing.
Which parser reads a row, and which record its parts become, is decided in `formats`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from espalier.data.read.messages import (
    Bad,
    as_hh_dialogue,
    as_history,
    as_messages,
    as_text,
    check_order,
    shown,
)
from espalier.data.records import ASSISTANT, SYSTEM, USER, Message, Messages

Row = Mapping[str, Any]

CHOSEN = ("chosen", "selected", "response_chosen")
REJECTED = ("rejected", "response_rejected")
QUESTION = ("prompt", "question", "query", "problem")
COMPLETION = ("completion", "response", "answer", "solution", "target")
WANTED = {
    "text": "`text`",
    "chat": "`messages`, `conversations`, `instruction` and `output`, or `prompt` and `completion`",
    "preference": "`prompt`, `chosen` and `rejected` (or `answers` with scores)",
    "ranking": "`prompt` and `answers` with scores (or `chosen` and `rejected`)",
    "prompt": "`prompt`, `messages`, `conversations` or `instruction`",
    "unpaired": "`messages` (or `prompt` and `completion`) and `label`",
}


@dataclass(frozen=True)
class Parts:
    """What a row says, whatever it is wanted for: a prompt, and at most one of answer, pair, ranked, text."""

    prompt: Messages = ()
    answer: Messages = ()
    pair: tuple[Messages, Messages] | None = None
    ranked: tuple[tuple[Messages, float], ...] | None = None
    label: bool | None = None
    text: str | None = None
    prefix: str = ""


def parse_text(row: Row, kind: str) -> Parts:
    name = first_of(row, ("text", "content"))
    if name is None:
        raise missing(row, "text")
    return Parts(text=as_text(row[name], f"column {name!r}"))


def parse_openai(row: Row, kind: str) -> Parts:
    return _conversation(row, "messages", kind)


def parse_sharegpt(row: Row, kind: str) -> Parts:
    return _conversation(row, "conversations", kind)


def _conversation(row: Row, column: str, kind: str) -> Parts:
    """A dialogue, split behind its last turn that is not the assistant's."""
    if column not in row:
        raise missing(row, kind)
    messages = _with_system(row, as_messages(row[column], f"column {column!r}"))
    check_order(messages, f"column {column!r}")
    end = len(messages)
    while end and messages[end - 1].role == ASSISTANT:
        end -= 1
    return Parts(prompt=messages[:end], answer=messages[end:])


def parse_alpaca(row: Row, kind: str) -> Parts:
    if "instruction" not in row:
        raise missing(row, kind)
    prompt = _prompt(row)
    output = row.get("output", row.get("completion"))
    if kind == "prompt" or (output is None and "output" not in row and "completion" not in row):
        return Parts(prompt=prompt)
    if isinstance(output, list):
        if len(output) != 2:
            raise Bad(
                "broken pair", f"column 'output' is a list of {len(output)}, wanted [accepted, rejected]"
            )
        chosen, rejected = (_answer(text, "column 'output'") for text in output)
        return Parts(prompt=prompt, pair=(chosen, rejected))
    return Parts(prompt=prompt, answer=_answer(output, "column 'output'"))


def parse_prompt_completion(row: Row, kind: str) -> Parts:
    prompt = _prompt(row)
    name = first_of(row, COMPLETION)
    if kind == "prompt" or name is None:
        return Parts(prompt=prompt, prefix=as_text(row.get("prefix"), "column 'prefix'", may_be_empty=True))
    return Parts(prompt=prompt, answer=_answer(row[name], f"column {name!r}"))


def parse_hh(row: Row, kind: str) -> Parts:
    chosen_name, rejected_name = _pair_names(row, kind)
    chosen = as_hh_dialogue(row[chosen_name], f"column {chosen_name!r}")
    if kind == "chat":
        check_order(chosen, f"column {chosen_name!r}", ends_with=ASSISTANT)
        return Parts(prompt=chosen[:-1], answer=chosen[-1:])
    return _parted(chosen, as_hh_dialogue(row[rejected_name], f"column {rejected_name!r}"))


def parse_preference(row: Row, kind: str) -> Parts:
    """Two answers below a prompt in any layout, or two whole dialogues as lists of messages."""
    chosen_name, rejected_name = _pair_names(row, kind)
    chosen = _answer(row[chosen_name], f"column {chosen_name!r}")
    rejected = _answer(row[rejected_name], f"column {rejected_name!r}")
    has_prompt = first_of(row, (*QUESTION, "instruction", "conversations")) is not None
    if chosen[0].role == rejected[0].role == ASSISTANT:
        if not has_prompt:
            raise missing(row, kind)
        return Parts(prompt=_prompt(row), pair=(chosen, rejected))
    parts = _parted(chosen, rejected)
    if has_prompt:
        asked = [message.content for message in _prompt(row) if message.role == USER]
        if not any(message.content in asked for message in parts.prompt if message.role == USER):
            raise Bad(
                "two prompts",
                f"column {chosen_name!r} holds a whole dialogue that does not contain the row's prompt; "
                "keep only the answer in it, or remove the prompt column",
            )
    return parts


def parse_ranking(row: Row, kind: str) -> Parts:
    prompt = _prompt(row)
    prefix = as_text(row.get("prefix"), "column 'prefix'", may_be_empty=True)
    if kind == "prompt":
        return Parts(prompt=prompt, prefix=prefix)
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
    return Parts(prompt=prompt, ranked=tuple(ranked))


def _prompt(row: Row) -> Messages:
    """The prompt of a row whose answers stand in columns of their own: [system], earlier turns, the question."""
    if "conversations" in row:
        return _with_system(row, as_messages(row["conversations"], "column 'conversations'"))
    if "instruction" in row:
        names = ["instruction", "input"]
    else:
        first = first_of(row, QUESTION) or ("input" if "input" in row and "target" in row else None)
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


def _answer(value: Any, what: str) -> Messages:
    if isinstance(value, (list, dict)):
        return as_messages(value, what)
    return (Message(ASSISTANT, as_text(value, what)),)


def _parted(chosen: Messages, rejected: Messages) -> Parts:
    """Two dialogues as their common prompt and what follows; the prompt ends before an assistant's turn of both."""
    for messages, what in ((chosen, "the chosen dialogue"), (rejected, "the rejected dialogue")):
        check_order(messages, what, ends_with=ASSISTANT)
    common = 0
    while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
        common += 1
    while common and not chosen[common].role == rejected[common].role == ASSISTANT:
        common -= 1
    if not common:
        raise Bad(
            "no common prompt", "the chosen and the rejected dialogue begin differently; they need one prompt"
        )
    return Parts(prompt=chosen[:common], pair=(chosen[common:], rejected[common:]))


def _pair_names(row: Row, kind: str) -> tuple[str, str]:
    chosen, rejected = first_of(row, CHOSEN), first_of(row, REJECTED)
    if chosen is None or rejected is None:
        raise missing(row, kind)
    return chosen, rejected


def as_label(value: Any) -> bool | None:
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    return {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None


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
        f"found the columns {columns_of(row)}, wanted {WANTED[kind]}; rename yours with `columns: {{name here: name there}}`",
    )
