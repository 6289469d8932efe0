"""What a person prefers of two answers, as records that `dpo` and `reward` read at once.

A vote is one line of a jsonl file. A tie is a ranking of two equal scores: it makes no pair, and training counts it as
left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from espalier.data.records import Message
from espalier.disk.writing import writing_to
from espalier.errors import UserError
from espalier.serve.settings import AnswerSettings

Vote = Literal["a", "b", "tie"]
VOTES: tuple[Vote, ...] = get_args(Vote)


@dataclass(frozen=True)
class Voted:
    """One of two answers.

    Attributes:
        model: who wrote it.
        settings: how it was sampled (`settings_row`).
        answer: the assistant's turn.
        score: a reward model's, where one was asked.
    """

    model: str
    settings: Mapping[str, Any]
    answer: Message
    score: float | None = None


def settings_row(settings: AnswerSettings) -> dict[str, Any]:
    """What an answer was sampled with, as JSON: all settings that differ from their defaults, and the temperature.

    >>> settings_row(AnswerSettings(temperature=0.7, seed=3))
    {'temperature': 0.7, 'seed': 3}
    """
    row = {one.name: getattr(settings, one.name) for one in fields(settings)}
    defaults = {one.name: getattr(AnswerSettings(), one.name) for one in fields(settings)}
    kept = {name: value for name, value in row.items() if name == "temperature" or value != defaults[name]}
    return {
        name: dict(value)
        if isinstance(value, Mapping)
        else list(value)
        if isinstance(value, tuple)
        else value
        for name, value in kept.items()
    }


def vote_record(prompt: Sequence[Message], answers: tuple[Voted, Voted], vote: Vote) -> dict[str, Any]:
    """The record of a vote between answers `a` and `b` to one conversation.

    Raises:
        UserError: an answer is empty, or one of two equal ones is preferred: nothing could be learned from it.
    """
    a, b = answers
    if not (a.answer.content.strip() and b.answer.content.strip()):
        raise UserError("an answer is empty, and no record can be made of it. Ask again, or /retry.")
    if vote == "tie":
        record: dict[str, Any] = {
            "prompt": [message.as_turn() for message in prompt],
            "answers": [{"answer": one.answer.content, "score": 0.0} for one in answers],
            "models": [a.model, b.model],
            "settings": [dict(a.settings), dict(b.settings)],
        }
        if a.score is not None and b.score is not None:
            record["reward_scores"] = [a.score, b.score]
        return _dated(record, vote)
    if a.answer.text == b.answer.text:
        raise UserError("both answers are the same: none can be preferred. Vote tie, or ask for others.")
    chosen, rejected = (a, b) if vote == "a" else (b, a)
    record = {
        "prompt": [message.as_turn() for message in prompt],
        "chosen": [chosen.answer.as_turn()],
        "rejected": [rejected.answer.as_turn()],
        "models": {"chosen": chosen.model, "rejected": rejected.model},
        "settings": {"chosen": dict(chosen.settings), "rejected": dict(rejected.settings)},
    }
    if chosen.score is not None and rejected.score is not None:
        record["reward_scores"] = {"chosen": chosen.score, "rejected": rejected.score}
    return _dated(record, vote)


def _dated(record: dict[str, Any], vote: Vote) -> dict[str, Any]:
    return {**record, "vote": vote, "time": datetime.now(UTC).isoformat(timespec="seconds")}


def append_record(file: Path, record: Mapping[str, Any]) -> None:
    """One more line of a jsonl file; the line of a writer that was killed in the middle is ended first.

    Raises:
        UserError: the disk refuses it.
    """
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    with writing_to(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab+") as lines:
            if lines.seek(0, os.SEEK_END):
                lines.seek(-1, os.SEEK_END)
                line = line if lines.read(1) == b"\n" else "\n" + line
            # One write: two programs that vote into one file do not mix their lines.
            lines.write(line.encode("utf-8"))
