"""`espalier evaluate`: models and exams in, results.json and tables out; what is done is not done again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from espalier.data.encode.templates import Template, choose_template
from espalier.data.records import LeftOut
from espalier.disk.lock import owned
from espalier.disk.reading import object_or_nothing
from espalier.engine import files
from espalier.engine.hardware import keep_freed_memory
from espalier.engine.signals import StopSignal
from espalier.exam.harness import HarnessTask, examine_harness
from espalier.exam.lm_eval_files import write_lm_eval_files
from espalier.exam.numbers.tables import results_table
from espalier.exam.plan import ExamPlan, plan
from espalier.exam.run import Examiner, settings_hash
from espalier.exam.task import Generation, Task
from espalier.exam.tasks import Settings
from espalier.exam.tasks.shots import Asker, ShotsAs
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.identity import file_identity, model_identity
from espalier.models.open import open_model
from espalier.models.positions.rope import scaling_of
from espalier.models.run_folder import find_model
from espalier.models.tokenizers.marks import around_prompt
from espalier.report.exam_rows import exam_notes
from espalier.screen import Screen


@dataclass(frozen=True)
class Asking:
    """How a model is examined, whatever the exam.

    Attributes:
        layout: auto, tree or padded.
        template: ask in a chat template (auto or a name); None: plain text.
        shots_as: with a template, solved examples as turns or in one message.
        trust_remote_code: run Python code that comes with the model.
        allow_pickle: read weights in .bin files, through torch's safe loader.
        rope_scaling: of its positions, such as ``yarn:4``; None: what the model's folder says.
        dtype: of the weights, as in `models.open.open_model`.
        lm_eval_files: write results in the form of lm_eval's files, too.
        quiet: no progress and no table.
    """

    layout: str = "auto"
    template: str | None = None
    shots_as: ShotsAs = "turns"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    rope_scaling: str | None = None
    dtype: str = "auto"
    lm_eval_files: bool = False
    quiet: bool = False


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
        model_name_or_path: a folder or hub id; an adapter folder is merged into its base, a run's stands for the model
            of its last stage.
        tasks: names, groups, or YAML files, see `espalier.exam.tasks` and `espalier.exam.tasks.own_task`.
        out: where ``results.json`` and ``TASK.jsonl`` go.
        settings: how the named exams are asked.
        shots: each task is asked with each of these numbers of solved examples.
        asking: how the model is asked.

    Returns:
        What results.json holds.

    Raises:
        UserError: a task or model that cannot be read, or another process writes to `out`.
        Stopped: a signal came; what is done is kept.
    """
    keep_freed_memory()
    model_name_or_path = find_model(model_name_or_path)
    load.check_folder(model_name_or_path, allow_pickle=asking.allow_pickle)
    planned = plan(tasks, shots, settings or Settings(Path()))
    with owned(out / ".lock", out, "choose another --out"):
        return _examined(model_name_or_path, planned, out, asking)


def _examined(model_name_or_path: str, planned: ExamPlan, out: Path, asking: Asking) -> dict[str, Any]:
    opened = open_model(
        model_name_or_path,
        dtype=asking.dtype,
        trust_remote_code=asking.trust_remote_code,
        allow_pickle=asking.allow_pickle,
        rope_scaling=asking.rope_scaling,
    )
    model, tokenizer = opened.tree_model(asking.layout), opened.required_tokenizer
    return examine_all(model, tokenizer, planned, out, name=model_name_or_path, asking=asking)


def examine_all(
    model: TreeModel, tokenizer: Any, planned: ExamPlan, out: Path, *, name: str, asking: Asking = Asking()
) -> dict[str, Any]:
    """Examine a model that is in memory; see `evaluate`."""
    template = None if asking.template is None else choose_template(tokenizer, asking.template)
    around = around_prompt(model.lm, tokenizer)
    examiner = Examiner(model, tokenizer, Asker(template, asking.shots_as, around))
    how = _how(model, name, template, asking.shots_as, around)
    earlier = _earlier(out, how)
    results = {
        **how,
        "tasks": earlier.get("tasks", {}),
        "prefixes": earlier.get("prefixes", {}),
        "skipped": planned.skipped,
    }
    with StopSignal() as signal, _progress(asking.quiet) as bar:
        names = _examine_ours(examiner, planned, out, how, results, bar, signal)
        for task in _harness_tasks(planned, in_template=template is not None, asking=asking):
            rows = examine_harness(model, tokenizer, task, out)
            results["tasks"] |= rows
            names += rows
            files.write_json(out / "results.json", results)
    if asking.lm_eval_files:
        write_lm_eval_files(out, results)
    if not asking.quiet:
        _show(results, names)
    return results


def _how(
    model: TreeModel, name: str, template: Template | None, shots_as: ShotsAs, around: tuple[str, str]
) -> dict[str, Any]:
    """What makes two examinations of a model comparable, whatever the exam."""
    how: dict[str, Any] = {
        "model": name,
        "weights": settings_hash(model_identity(name)),
        "layout": "padded" if model.traits.method == "padded" else "tree",
        "template": None if template is None else type(template).__name__,
        "shots_as": None if template is None else shots_as,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    if template is None and any(around):
        how["around"] = list(around)
    scaling = scaling_of(model.lm.config)
    if scaling is not None:
        how["rope_scaling"] = scaling
    return how


def _examine_ours(
    examiner: Examiner,
    planned: ExamPlan,
    out: Path,
    how: Mapping[str, Any],
    results: dict[str, Any],
    bar: Progress,
    signal: StopSignal,
) -> list[str]:
    """Examine the tasks that `results` does not have yet, in place, and return the names of all."""
    rows: dict[str, Any] = results["tasks"]
    for task, number in planned.tasks:
        key = settings_hash({**how, **_about(task, number)})
        if rows.get(task.name, {}).get("settings") != key or not (out / f"{task.name}.jsonl").is_file():
            line = bar.add_task(task.name, total=number)
            examined = examiner.examine(
                task,
                out,
                settings={"settings": key},
                advance=partial(bar.advance, line),
                stopped=lambda: signal.asked,
            )
            if task.submission is not None:
                _write_submission(task, out)
            rows[task.name] = examined.row | {"settings": key}
            results["prefixes"] |= examined.prefixes
        files.write_json(out / "results.json", results)
    return [task.name for task, _ in planned.tasks]


def _harness_tasks(planned: ExamPlan, *, in_template: bool, asking: Asking) -> list[HarnessTask]:
    """lm_eval's tasks; one that is asked with several numbers of solved examples has each in its name."""
    settings, names = planned.settings, [name for name, _ in planned.harness]
    return [
        HarnessTask(
            name,
            shots,
            suffix=f"_{shots}shot" if names.count(name) > 1 else "",
            limit=settings.limit,
            data=settings.data,
            seed=settings.seed,
            in_template=in_template,
            shots_as_turns=asking.shots_as == "turns",
        )
        for name, shots in planned.harness
    ]


def _show(results: Mapping[str, Any], names: Sequence[str]) -> None:
    """The table of these tasks, and what a reader must know of it."""
    console, rows = Screen(), results["tasks"]
    console.print(results_table({**results, "tasks": {name: rows[name] for name in names}}))
    for name in names:
        for note in exam_notes(rows[name]):
            console.say(f"{name}: {note}")
    for task, reason in results["skipped"].items():
        console.say(f"left out: {task}: {reason}")


def _write_submission(task: Task, out: Path) -> None:
    """``TASK.submission.json``: the predictions as the exam's organisers want them."""
    assert task.submission is not None
    with (out / f"{task.name}.jsonl").open(encoding="utf-8") as lines:
        predictions = (json.loads(line).get("prediction") for line in lines)
        questions = (question for question in task.read() if not isinstance(question, LeftOut))
        pairs = zip(questions, predictions, strict=True)
        text = task.submission((question, said) for question, said in pairs if said is not None)
    files.write_text(out / f"{task.name}.submission.json", text)


def _about(task: Task, number: int) -> Mapping[str, Any]:
    return {
        "task": task.name,
        "n": number,
        "shots": task.shots,
        "normalise": task.normalise,
        "overlong": task.overlong,
        "written": _generated(task.generation),
        "about": dict(task.about),
        "inputs": [[str(path), file_identity(path)] for path in task.inputs],
    }


def _generated(how: Generation | None) -> list[Any] | None:
    return None if how is None else [how.max_new_tokens, how.stop, asdict(how.drawing)]


def _earlier(out: Path, how: Mapping[str, Any]) -> dict[str, Any]:
    """What `out` has of the same model asked in the same way; {} where it has none."""
    results = object_or_nothing(out / "results.json")
    return results if all(results.get(key) == value for key, value in how.items()) else {}


def _progress(quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Screen(stderr=True), disable=quiet, transient=True)
