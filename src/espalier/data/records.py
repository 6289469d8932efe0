"""What one line of a user's data means: a frozen dataclass for each kind of training example.

A record is checked once, when it is made from a row (`formats`), and never changes. It knows where it came
from (`source`, "FILE:LINE"), so that every later complaint can name the place. Records hold text only:
how turns are written down is a template's business (`templates`), numbers are `tokenise`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `role` is one of system, user, assistant, tool. `prefix` is text that already stands at the beginning of
    an assistant's turn and is not the assistant's own work: it is shown to the model but never trained.

    >>> Message("assistant", "东边日出西边雨。", prefix="下联：").content
    '东边日出西边雨。'
    """

    role: str
    content: str
    prefix: str = ""


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A document, for pretraining.

    >>> Text("春眠不觉晓，处处闻啼鸟。", source="poems.jsonl:1").text
    '春眠不觉晓，处处闻啼鸟。'
    """

    text: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; every assistant turn of it is an example to imitate.

    `tools` is the JSON text of the functions that the assistant may call, or None.

    >>> chat = Chat((Message("user", "2+3=?"), Message("assistant", "5")), source="sums.jsonl:7")
    >>> [message.role for message in chat.messages]
    ['user', 'assistant']
    """

    messages: Messages
    source: str = ""
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """Two continuations of one prompt, the first better than the second; they are never equal.

    A continuation is usually one assistant turn. Where two dialogues part earlier it is several turns, of
    which the assistant's are compared.

    >>> pair = Preference(
    ...     prompt=(Message("user", "2+3=?"),),
    ...     chosen=(Message("assistant", "5"),),
    ...     rejected=(Message("assistant", "6"),),
    ...     source="pairs.jsonl:1",
    ... )
    >>> pair.chosen[0].content
    '5'
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    source: str = ""
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """At least two continuations of one prompt, best first, each with a score.

    Answers with equal scores make no pair. At least two scores differ.

    >>> ranking = Ranking(
    ...     prompt=(Message("user", "Say hello."),),
    ...     answers=(((Message("assistant", "Hello!"),), 2.0), ((Message("assistant", "What?"),), 0.5)),
    ...     source="ranks.jsonl:3",
    ... )
    >>> [score for _, score in ranking.answers]
    [2.0, 0.5]
    """

    prompt: Messages
    answers: tuple[tuple[Messages, float], ...]
    source: str = ""
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for an answer, for rollouts; `reference` is what a rule reward compares with.

    `prefix` is how the answer must begin (see `Message.prefix`).

    >>> Prompt((Message("user", "2+3=?"),), reference="5", source="sums.jsonl:7").reference
    '5'
    """

    messages: Messages
    reference: str | None = None
    source: str = ""
    tools: str | None = None
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Unpaired:
    """One continuation of a prompt that somebody called good (`label` True) or bad (False), as KTO uses it.

    >>> Unpaired((Message("user", "2+3=?"),), (Message("assistant", "6"),), label=False).label
    False
    """

    prompt: Messages
    completion: Messages
    label: bool
    source: str = ""
    tools: str | None = None


Record = Text | Chat | Preference | Ranking | Prompt | Unpaired

KINDS = ("text", "chat", "preference", "ranking", "prompt", "unpaired")


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A row that is no record: `cause` is short enough to be counted, `reason` says what to do about it.

    >>> str(BadRecord("a.jsonl:7", "empty answer", "column 'output' is empty"))
    "a.jsonl:7: column 'output' is empty"
    """

    source: str
    cause: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A sound row that teaches nothing here (say, chosen equal to rejected); counted, but no error.

    >>> LeftOut("a.jsonl:7", "chosen equals rejected").cause
    'chosen equals rejected'
    """

    source: str
    cause: str


def texts_of(record: Record) -> list[str]:
    """Everything said in a record, turn by turn; of a ranking the prompt and the best answer."""
    if isinstance(record, Text):
        return [record.text]
    if isinstance(record, (Chat, Prompt)):
        turns: list[Message] = [*record.messages]
    elif isinstance(record, Preference):
        turns = [*record.prompt, *record.chosen, *record.rejected]
    elif isinstance(record, Ranking):
        turns = [*record.prompt, *record.answers[0][0]]
    else:
        turns = [*record.prompt, *record.completion]
    return [turn.prefix + turn.content for turn in turns]
