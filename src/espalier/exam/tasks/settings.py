"""What a user chooses about named exams, and how their files are found."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from espalier.errors import UserError
from espalier.exam.task import LIKELIEST, Drawing, Overlong

Prompts = Literal["plain", "pangu"]

FileNames = tuple[str | tuple[str, ...], ...]
"""Where an exam's files may be: the first entry that is there whole; an entry is a name, or several that belong
together."""


@dataclass(frozen=True)
class Settings:
    """How the named exams are asked.

    Attributes:
        data: folder of the exams' folders.
        prompts: prompt set of the CLUE tasks.
        shots: solved examples before a question.
        seed: of the choice of examples and of wrong candidates.
        limit: only so many questions of each task (of each subject, for the knowledge exams).
        negatives: CLUE's many-label tasks with the right label and so many wrong ones; None: all labels.
        answers: knowledge exams by their letters, or by the options' whole texts.
        split: "dev" has labels; "test" has none, and predictions are written for submission.
        new_shots: draw examples anew for each question, instead of once for the run.
        overlong: what happens to questions that do not fit into the context (`Task.overlong`).
        max_new_tokens: of written answers; None: what each exam says.
        drawing: how written answers are drawn.
    """

    data: Path
    prompts: Prompts = "plain"
    shots: int = 0
    seed: int = 42
    limit: int | None = None
    negatives: int | None = None
    answers: Literal["letter", "text"] = "letter"
    split: Literal["dev", "test"] = "dev"
    new_shots: bool = False
    overlong: Overlong = "trim"
    max_new_tokens: int | None = None
    drawing: Drawing = LIKELIEST


class NoShots(UserError):
    """A task has no file to take solved examples from; it is left out, and said so, where other tasks have one."""


class NoFolder(UserError):
    """An exam's folder is not there; it is left out, and said so, where a group was asked for."""


def folder_of(data: Path, names: Sequence[str]) -> Path:
    """The folder of an exam below `data`, whatever the case of its letters.

    Raises:
        NoFolder: there is none; names what is there.
    """
    if not data.is_dir():
        raise UserError(
            f"--data {data}: there is no such folder. Give the folder that holds {names[0]}/ and others."
        )
    there = {path.name.lower(): path for path in sorted(data.iterdir()) if path.is_dir()}
    for name in names:
        if name in there:
            return there[name]
    if data.name.lower() in names:
        return data
    near = difflib.get_close_matches(names[0], list(there), n=3) or list(there)[:8]
    raise NoFolder(f"{data}: no folder {' or '.join(names)} in it; found {', '.join(near) or 'nothing'}.")


def question_files(folder: Path, names: FileNames) -> list[Path]:
    """The files of an exam's questions.

    Raises:
        UserError: there are none; names what was looked for.
    """
    paths = _first(folder, names)
    if not paths:
        listed = ", ".join(entry if isinstance(entry, str) else " with ".join(entry) for entry in names)
        raise UserError(f"{folder}: no file of questions; wanted {listed}.")
    return paths


def train_files(name: str, folder: Path, names: FileNames) -> list[Path]:
    """The files that solved examples come from.

    Raises:
        NoShots: there are none.
    """
    paths = _first(folder, names)
    if not paths:
        raise NoShots(f"{name}: no train file in {folder}, and solved examples come from nowhere else.")
    return paths


def _first(folder: Path, names: FileNames) -> list[Path]:
    for entry in names:
        paths = [folder / name for name in ((entry,) if isinstance(entry, str) else entry)]
        if all(path.is_file() for path in paths):
            return paths
    return []
