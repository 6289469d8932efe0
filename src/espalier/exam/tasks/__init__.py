"""The named exams: CLUE and FewCLUE, C-Eval, CMMLU, MMLU, and exams whose answers are written."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from espalier.errors import UserError
from espalier.exam.task import Task
from espalier.exam.tasks import clue, knowledge, records, writing
from espalier.exam.tasks.own_task import load_task
from espalier.exam.tasks.settings import NoFolder, NoShots, Settings

GROUPS: dict[str, tuple[str, ...]] = {
    "clue": (
        "ocnli", "cmnli", "chid", "cmrc2018", "cluewsc2020", "c3", "afqmc", "csl", "iflytek", "tnews",
    ),
    "fewclue": ("bustm", "eprstmt", "csldcp"),
}  # fmt: skip


TYPES = {
    "ocnli": "inference",
    "cmnli": "inference",
    "chid": "cloze",
    "cmrc2018": "reading comprehension",
    "drcd": "reading comprehension",
    "c3": "reading comprehension",
    "cluewsc2020": "coreference",
    "afqmc": "sentence similarity",
    "bustm": "sentence similarity",
    "csl": "keyword recognition",
    "iflytek": "text classification",
    "tnews": "text classification",
    "csldcp": "text classification",
    "eprstmt": "sentiment",
    "ceval": "knowledge",
    "cmmlu": "knowledge",
    "mmlu": "knowledge",
    "gsm8k": "mathematics",
    "math_bench": "mathematics",
    "lcsts": "summarisation",
}
"""What an exam tests, where its kind does not say it."""

_TYPES_OF_KINDS = {
    "choose": "choice",
    "write": "generation",
    "rate": "preference",
    "read": "language modelling",
}


class NamedExam(Protocol):
    """An exam that is known by name."""

    def task(self, name: str, settings: Settings) -> Task: ...


EXAMS: Mapping[str, NamedExam] = {**clue.EXAMS, **knowledge.EXAMS, **writing.EXAMS}

__all__ = ["EXAMS", "GROUPS", "NoFolder", "NoShots", "Settings", "make_task", "names_of"]


def names_of(wanted: Sequence[str]) -> dict[str, bool]:
    """Groups resolved into their tasks, in order: each name, and whether it was asked for by itself.

    Raises:
        UserError: a name that is none; names the nearest.
    """
    by_itself: dict[str, bool] = {}
    for name in wanted:
        if name in GROUPS:
            by_itself |= {member: by_itself.get(member, False) for member in GROUPS[name]}
        elif name in EXAMS or name.endswith((".yaml", ".yml")) or name.partition(":")[0] in PREFIXES:
            by_itself[name] = True
        else:
            known = [*GROUPS, *EXAMS]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}."
            raise UserError(
                f"--tasks {name}: there is no such exam; {hint} A task of your own is a .yaml file; "
                f"others are {', '.join(p + ':FILE' for p in PREFIXES if p != 'lm_eval')}, lm_eval:NAME."
            )
    return by_itself


PREFIXES = (*records.KINDS, "lm_eval")
"""Exams on a file of the user's are PREFIX:FILE; those of the library lm_eval are lm_eval:NAME."""


def make_task(name: str, settings: Settings, *, shots: int | None) -> Task:
    """A task by its name; `shots` None leaves a user's own task what its file says, and is 0 for others.

    Raises:
        UserError: something about its files is wrong.
        NoShots: it has no solved examples.
    """
    return _as_wanted(name, _task(name, settings, shots), settings)


def _as_wanted(name: str, task: Task, settings: Settings) -> Task:
    """The task with its type, and with what is said of overlong questions and written answers."""
    how = task.generation
    if how is not None:
        longest = settings.max_new_tokens or how.max_new_tokens
        drawing = settings.drawing if settings.drawing.temperature else how.drawing  # whatever the seed
        how = replace(how, max_new_tokens=longest, drawing=drawing)
    type_ = TYPES.get(name) or _TYPES_OF_KINDS[task.kind]
    return replace(task, type=type_, overlong=settings.overlong, generation=how)


def _task(name: str, settings: Settings, shots: int | None) -> Task:
    if name.endswith((".yaml", ".yml")):
        return load_task(name, shots=shots, limit=settings.limit, seed=settings.seed)
    mine = replace(settings, shots=shots or 0)
    if name in EXAMS:
        return EXAMS[name].task(name, mine)
    kind, _, file = name.partition(":")
    return records.file_task(kind, file, mine)
