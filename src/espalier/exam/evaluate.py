"""`espalier evaluate`: models and exams in, results.json and tables out; what is done is not done again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from espalier.data.records import LeftOut
from espalier.data.templates import choose_template
from espalier.engine import files
from espalier.engine.hardware import keep_freed_memory
from espalier.engine.signals import StopSignal
from espalier.errors import UserError
from espalier.exam.run import Examiner, settings_hash
from espalier.exam.shots import Asker, ShotsAs
from espalier.exam.tables import results_table
from espalier.exam.task import Task
from espalier.exam.tasks import NoFolder, NoShots, Settings, make_task, names_of
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from espalier.models.saved import read_scalar_head


@dataclass(frozen=True)
class Asking:
    """How a model is examined, whatever the exam.

    Attributes:
        layout: auto, tree or padded.
        template: ask in a chat template (auto or a name); None: plain text.
        shots_as: with a template, solved examples as turns or in one message.
        trust_remote_code: run Python code that comes with the model.
        quiet: no progress and no table.
    """

    layout: str = "auto"
    template: str | None = None
    shots_as: ShotsAs = "turns"
    trust_remote_code: bool = False
    quiet: bool = False


@dataclass
class Planned:
    """The tasks of a call, with how many questions each has, and those that cannot be asked, with the reason."""

    tasks: list[tuple[Task, int]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def plan(names: Sequence[str], shots: Sequence[int | None], settings: Settings) -> Planned:
    """Read every task once, before a model is loaded, so that a broken line is found at once.

    Args:
        names: tasks and groups.
        shots: each task is asked with each of these numbers; None is what a user's task says, or 0.

    Raises:
        UserError: a task that cannot be read; no task that can be asked.
    """
    found = Planned()
    for name, by_itself in names_of(names).items():
        for count in shots:
            try:
                task = make_task(name, settings, shots=count)
            except NoShots as reason:
                found.skipped[f"{name}, {count} shots"] = str(reason)
                continue
            except NoFolder as reason:
                if by_itself:
                    raise
                found.skipped[name] = str(reason)
                continue
            if len(shots) > 1:
                task = replace(task, name=f"{task.name}_{task.shots}shot")
            number = sum(1 for question in task.read() if not isinstance(question, LeftOut))
            if any(task.name == other.name for other, _ in found.tasks):
                raise UserError(f"two tasks are called {task.name}: rename one, their results share a file.")
            found.tasks.append((task, number))
    if not found.tasks:
        raise UserError("no exam can be asked: " + " ".join(found.skipped.values()))
    return found


def evaluate(
    model_name_or_path: str,
    tasks: Sequence[str],
    *,
    out: Path,
    settings: Settings | None = None,
    shots: Sequence[int | None] = (None,),
    asking: Asking = Asking(),
) -> dict[str, Any]:
    """Examine a model; tasks that `out` has results of, with the same settings, are not asked again.

    Args:
        model_name_or_path: a folder or hub id; an adapter folder is merged into its base.
        tasks: names, groups, or YAML files, see `espalier.exam.tasks` and `espalier.exam.own_task`.
        out: where ``results.json`` and ``TASK.jsonl`` go.
        settings: how the named exams are asked.
        shots: each task is asked with each of these numbers of solved examples.
        asking: how the model is asked.

    Returns:
        What results.json holds.

    Raises:
        UserError: a task or model that cannot be read.
        Interrupted: a signal came; what is done is kept.
    """
    keep_freed_memory()
    planned = plan(tasks, shots, settings or Settings(Path()))
    lm = load.load_with_adapter(model_name_or_path, trust_remote_code=asking.trust_remote_code)
    tokenizer = load.load_tokenizer(model_name_or_path, trust_remote_code=asking.trust_remote_code)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    traits = probe(lm.to(device), wanted=asking.layout)
    model = TreeModel(lm, traits, read_scalar_head(model_name_or_path)).to(device).eval()
    return examine_all(model, tokenizer, planned, out, name=model_name_or_path, asking=asking)


def examine_all(
    model: TreeModel, tokenizer: Any, planned: Planned, out: Path, *, name: str, asking: Asking = Asking()
) -> dict[str, Any]:
    """Examine a model that is in memory; see `evaluate`."""
    template = None if asking.template is None else choose_template(tokenizer, asking.template)
    examiner = Examiner(model, tokenizer, Asker(template, asking.shots_as))
    how = {
        "model": name,
        "layout": "padded" if model.traits.method == "padded" else "tree",
        "template": None if template is None else type(template).__name__,
        "shots_as": None if template is None else asking.shots_as,
    }
    results: dict[str, Any] = {**how, "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
    results |= {"tasks": {}, "prefixes": {}, "skipped": planned.skipped}
    before = _earlier(out)
    with StopSignal() as signal, _progress(asking.quiet) as bar:
        for task, number in planned.tasks:
            key = settings_hash({**how, "weights": fingerprint(name), **_about(task, number)})
            done = before.get("tasks", {}).get(task.name, {})
            if done.get("settings") == key and (out / f"{task.name}.jsonl").is_file():
                results["tasks"][task.name] = done
                results["prefixes"] |= before.get("prefixes", {})
            else:
                line = bar.add_task(task.name, total=number)
                found = examiner.examine(
                    task,
                    out,
                    settings={"settings": key},
                    advance=partial(bar.advance, line),
                    stopped=lambda: signal.asked,
                )
                if task.submission is not None:
                    _write_submission(task, out)
                results["tasks"][task.name] = found.row | {"settings": key}
                results["prefixes"] |= found.prefixes
            files.write_json(out / "results.json", results)
    if not asking.quiet:
        console = Console()
        console.print(results_table(results))
        for what, reason in planned.skipped.items():
            console.print(f"left out: {what}: {reason}", highlight=False)
    return results


def _write_submission(task: Task, out: Path) -> None:
    """``TASK.submission.json``: the predictions as the exam's organisers want them."""
    assert task.submission is not None
    with (out / f"{task.name}.jsonl").open(encoding="utf-8") as lines:
        said = (json.loads(line)["prediction"] for line in lines)
        asked = (question for question in task.read() if not isinstance(question, LeftOut))
        text = task.submission(zip(asked, said, strict=True))
    files.write_text(out / f"{task.name}.submission.json", text)


def fingerprint(name: str) -> list[Any]:
    """What changes when a model folder's weights do; [] for a hub id."""
    folder = Path(name)
    kinds = ("*.safetensors", "*.bin", "*.json")
    there = [path for kind in kinds for path in sorted(folder.glob(kind))] if folder.is_dir() else []
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in there]


def _about(task: Task, number: int) -> Mapping[str, Any]:
    stats = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in task.inputs]
    return {
        "task": task.name,
        "n": number,
        "shots": task.shots,
        "normalise": task.normalise,
        "about": dict(task.about),
        "inputs": stats,
    }


def _earlier(out: Path) -> dict[str, Any]:
    try:
        found = json.loads((out / "results.json").read_text("utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _progress(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True)
