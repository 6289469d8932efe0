"""What an exam call asks for: tasks read once before a model is loaded, so that a broken line is found at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from espalier.data.records import LeftOut
from espalier.errors import UserError
from espalier.exam.harness import check_installed
from espalier.exam.task import Task
from espalier.exam.tasks import NoFolder, NoShots, Settings, make_task, names_of


@dataclass
class ExamPlan:
    """The tasks of a call.

    Attributes:
        tasks: each with its number of questions.
        harness: tasks of the library lm_eval, each with its number of solved examples; None: as the task says.
        skipped: tasks that cannot be asked, with the reason.
        settings: how they are asked.
    """

    settings: Settings
    tasks: list[tuple[Task, int]] = field(default_factory=list)
    harness: list[tuple[str, int | None]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def plan(names: Sequence[str], shots: Sequence[int | None], settings: Settings) -> ExamPlan:
    """Read every task once.

    Args:
        names: tasks and groups.
        shots: each task is asked with each of these numbers; None is what a user's task says, or 0.
        settings: how the tasks are asked.

    Raises:
        UserError: a task that cannot be read; no task that can be asked.
    """
    exams = ExamPlan(settings)
    for name, by_itself in names_of(names).items():
        if name.startswith("lm_eval:"):
            check_installed()
            exams.harness += [(name.removeprefix("lm_eval:"), count) for count in shots]
            continue
        for count in shots:
            try:
                task = make_task(name, settings, shots=count)
            except NoShots as reason:
                exams.skipped[f"{name}, {count} shots"] = str(reason)
                continue
            except NoFolder as reason:
                if by_itself:
                    raise
                exams.skipped[name] = str(reason)
                continue
            if len(shots) > 1:
                task = replace(task, name=f"{task.name}_{task.shots}shot")
            number = sum(1 for question in task.read() if not isinstance(question, LeftOut))
            if any(task.name == other.name for other, _ in exams.tasks):
                raise UserError(f"two tasks are called {task.name}: rename one, their results share a file.")
            exams.tasks.append((task, number))
    if not exams.tasks and not exams.harness:
        raise UserError("no exam can be asked. " + "\n".join(exams.skipped.values()))
    return exams
