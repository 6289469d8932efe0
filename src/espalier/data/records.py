"""What one line of a user's data means: a prompt with zero or more answers, which is already the tree to train on.

A record is checked once, when it is made from a row (`read.rows`), and never changes. It knows where it came
from (`source`, "FILE:LINE"), so that every later complaint can name the place. Records hold text only:
how turns are written down is a template's business (`templates`), numbers are `tokenise`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    >>> Message("assistant", "东边日出西边雨。", prefix="下联：").content
    '东边日出西边雨。'

    Attributes:
        role: system, user, assistant or tool.
        content: what is said in it; may be empty where an assistant only calls tools.
        prefix: text that already stands at the beginning of an assistant's turn and is not the assistant's own work:
            it is shown to the model but never trained.
        thoughts: what an assistant thinks before it answers, where a file has it apart from the answer.
        calls: an assistant's calls of tools, as the JSON text of OpenAI's list.
        calls_as_text: whether `content` is nothing but those calls, as the file writes them.
        name: of a tool whose result this is, or of a speaker.
        call_id: which call a tool's result answers.
        trained: False of an assistant's turn that is read and not learned.
    """

    role: str
    content: str
    prefix: str = ""
    thoughts: str = field(default="", repr=False)
    calls: str = field(default="", repr=False)
    calls_as_text: bool = field(default=False, repr=False)
    name: str = field(default="", repr=False)
    call_id: str = field(default="", repr=False)
    trained: bool = field(default=True, repr=False)

    @property
    def is_plain(self) -> bool:
        """Whether the turn is a text and nothing else."""
        return not (self.thoughts or self.calls or self.name or self.call_id)

    @property
    def written(self) -> str:
        """The content and behind it the calls, as JSON: what stands in formats that have no form for calls.

        >>> Message(
        ...     "assistant", "Let me see.", calls='[{"function": {"name": "now", "arguments": {}}}]'
        ... ).written
        'Let me see.\\n{"name": "now", "arguments": {}}'
        """
        if not self.calls or self.calls_as_text:
            return self.content
        calls = [
            {key: call["function"][key] for key in ("name", "arguments")} for call in json.loads(self.calls)
        ]
        text = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
        return f"{self.content}\n{text}" if self.content else text

    @property
    def text(self) -> str:
        """Everything that is said in the turn, thoughts and calls included."""
        return self.prefix + (f"{self.thoughts}\n" if self.thoughts else "") + self.written

    def as_turn(self) -> dict[str, Any]:
        """The turn with OpenAI's keys, those that are empty left out.

        >>> Message("assistant", "5", thoughts="2 and 3").as_turn()
        {'role': 'assistant', 'content': '5', 'reasoning_content': '2 and 3'}
        """
        further = {
            "prefix": self.prefix,
            "reasoning_content": self.thoughts,
            "tool_calls": json.loads(self.calls) if self.calls else None,
            "name": self.name,
            "tool_call_id": self.call_id,
        }
        turn: dict[str, Any] = {"role": self.role, "content": "" if self.calls_as_text else self.content}
        turn.update({key: value for key, value in further.items() if value})
        return turn if self.trained else {**turn, "weight": 0}


Messages = tuple[Message, ...]

KINDS = ("text", "chat", "preference", "ranking", "prompt", "unpaired")


@dataclass(frozen=True, slots=True)
class Answer:
    """One continuation of a prompt: usually one assistant turn, several where dialogues part earlier.

    `score` is how good somebody found it, in any unit; `label` whether somebody called it good, as KTO uses it.
    """

    messages: Messages
    score: float | None = None
    label: bool | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt and its answers; the assistant's turns in the answers are what is trained or judged.

    >>> Record.chat((Message("user", "2+3=?"), Message("assistant", "5")), source="sums.jsonl:7").answers
    (Answer(messages=(Message(role='assistant', content='5', prefix=''),), score=None, label=None),)

    Attributes:
        kind: one of `KINDS`.
        prompt: what is read; empty for a document.
        answers: none of a prompt, one of a document, a chat or an unpaired answer, else the best first.
        tools: the JSON text of the functions that the assistant may call.
        reference: what a rule reward compares an answer with.
        columns: of a prompt, the JSON text of what its row holds beside the conversation, for rewards; "" where it is
            nothing.
        prefix: how an answer to a prompt must begin (see `Message.prefix`).
        notes: causes for which some of the row is not in the record; they are counted with it.
    """

    kind: str
    prompt: Messages = ()
    answers: tuple[Answer, ...] = ()
    source: str = ""
    tools: str | None = None
    reference: str | None = None
    columns: str = field(default="", repr=False, compare=False)
    prefix: str = ""
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def document(cls, text: str, source: str = "") -> Record:
        """A text for pretraining: an answer to nothing, written without a template."""
        return cls("text", (), (Answer((Message(ASSISTANT, text),)),), source)

    @classmethod
    def chat(cls, messages: Messages, source: str = "", tools: str | None = None) -> Record:
        """A conversation; every assistant turn of it is an example to imitate, so its prompt is its opening."""
        end = len(_opening(messages))
        return cls("chat", messages[:end], (Answer(messages[end:]),), source, tools)

    @classmethod
    def preference(
        cls,
        prompt: Messages,
        chosen: Messages,
        rejected: Messages,
        source: str = "",
        tools: str | None = None,
    ) -> Record:
        """Two answers, the first better than the second; they are never equal."""
        return cls("preference", prompt, (Answer(chosen), Answer(rejected)), source, tools)

    @classmethod
    def ranking(
        cls,
        prompt: Messages,
        answers: Sequence[tuple[Messages, float]],
        source: str = "",
        tools: str | None = None,
    ) -> Record:
        """At least two (answer, score), best first. Equal scores make no pair; at least two scores differ."""
        return cls("ranking", prompt, tuple(Answer(*answer) for answer in answers), source, tools)

    @classmethod
    def unpaired(
        cls, prompt: Messages, answer: Messages, label: bool, source: str = "", tools: str | None = None
    ) -> Record:
        """One answer that somebody called good (`label` True) or bad (False)."""
        return cls("unpaired", prompt, (Answer(answer, label=label),), source, tools)

    @property
    def opening(self) -> Messages:
        """The turns before the assistant's first."""
        return _opening(self.prompt)

    @property
    def branches(self) -> list[Messages]:
        """Each answer with the prompt before it."""
        return [(*self.prompt, *answer.messages) for answer in self.answers]

    @property
    def messages(self) -> Messages:
        """The conversation of a chat or a prompt."""
        return self.branches[0] if self.answers else self.prompt

    @property
    def text(self) -> str:
        """A document's text."""
        return self.answers[0].messages[0].content

    @property
    def texts(self) -> list[str]:
        """Everything said, turn by turn; of a ranking the prompt and the best answer (others may be drawn by chance)."""
        answers = self.answers[:1] if self.kind == "ranking" else self.answers
        turns = [*self.prompt, *(turn for answer in answers for turn in answer.messages)]
        return [turn.text for turn in turns]


def _opening(messages: Messages) -> Messages:
    end = next((at for at, turn in enumerate(messages) if turn.role == ASSISTANT), len(messages))
    return messages[:end]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A row that is no record: `cause` is short enough to be counted, `reason` says what to do about it.

    >>> str(BadRecord("a.jsonl:7", "empty answer", "column 'output' is empty"))
    "a.jsonl:7: column 'output' is empty"

    Attributes:
        hides: whether further records of the file, nobody knows how many, could not be read because of it.
    """

    source: str
    cause: str
    reason: str
    hides: bool = False

    def __post_init__(self) -> None:
        """Half a character of the user's text, shown in the reason, could not be written to any file."""
        object.__setattr__(self, "reason", self.reason.encode("utf-8", "backslashreplace").decode("utf-8"))

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
