"""Exams on any file of the user's: ``generation:FILE``, ``reward:FILE`` and ``perplexity:FILE``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from espalier.data.read.files import data_files, read_rows
from espalier.data.read.rows import parse_row
from espalier.data.records import BadRecord, LeftOut, Record
from espalier.errors import UserError
from espalier.exam.judges.judge import judge_text
from espalier.exam.task import Generation, Question, Shots, Task
from espalier.exam.tasks.settings import NoShots, Settings

KINDS = {"generation": "chat", "reward": "preference", "perplexity": "text"}
"""The exams and what their files hold."""

_MOST_NEW_TOKENS = 256


def file_task(kind: str, name: str, settings: Settings) -> Task:
    """One of `KINDS` on a file, or on all data files of a folder.

    Raises:
        UserError: there is no such file, or a row is not of the kind.
        NoShots: solved examples are wanted.
    """
    if settings.shots:
        raise NoShots(
            f"{kind}:{name}: a file of {KINDS[kind]} records has no solved examples; ask with 0 shots."
        )
    paths = _paths(kind, Path(name))
    common: dict[str, Any] = {
        "name": f"{kind}_{Path(name).stem}",
        "about": {"files": [path.name for path in paths]},
        "inputs": tuple(paths),
    }

    def read() -> Iterator[Any]:
        return islice(_records(paths, KINDS[kind]), settings.limit)

    if kind == "reward":
        return Task(read=lambda: (_rated(record) for record in read()), kind="rate", **common)
    if kind == "perplexity":
        return Task(read=lambda: (_whole(record) for record in read()), kind="read", **common)
    how = Generation(_MOST_NEW_TOKENS, (), judge_text, likelihood=True)
    return Task(
        read=lambda: (_last_turn(record) for record in read()), kind="write", generation=how, **common
    )


def _paths(kind: str, path: Path) -> list[Path]:
    if path.is_dir():
        return data_files(path)
    if not path.is_file():
        raise UserError(f"--tasks {kind}:{path}: there is no such file, and no folder with data files.")
    return [path]


def _records(paths: list[Path], kind: str) -> Iterator[Any]:
    for path in paths:
        for place, row, _ in read_rows(path):
            record = row if isinstance(row, BadRecord) else parse_row(row, place, kind)
            if isinstance(record, BadRecord):
                raise UserError(str(record))
            yield record


def _rated(record: Any) -> Any:
    assert isinstance(record, LeftOut) or record.kind in ("preference", "ranking"), record
    return record


def _whole(record: Any) -> Any:
    if isinstance(record, Record) and not record.text:
        return LeftOut(record.source, "empty text")
    return record


def _last_turn(record: Any) -> Question | LeftOut:
    """The last turn as the question, what was said before as its solved examples."""
    if isinstance(record, LeftOut):
        return record
    assert record.kind == "chat"
    place = record.source
    intro = "".join(m.content + "\n" for m in record.messages if m.role == "system")
    turns = [m for m in record.messages if m.role != "system"]
    if [m.role for m in turns] != ["user", "assistant"] * (len(turns) // 2) or not turns[-1].content.strip():
        return LeftOut(place, "no answer of the assistant after each question")
    before = tuple((u.content + "\n", a.content) for u, a in zip(turns[:-2:2], turns[1:-2:2], strict=True))
    shots = Shots(intro, before, "\n")
    name, asked, answer = place.rsplit(":", 1)[-1], turns[-2].content + "\n", turns[-1].content
    return Question(name, asked, references=(answer,), source=place, shots=shots)
