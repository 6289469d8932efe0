"""Running exams: tasks and a model in, results.json, one jsonl line a question, and a table out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from espalier.data.records import Message
from espalier.data.templates import Template, choose_template, prompt_text
from espalier.engine import files
from espalier.exam import scores
from espalier.exam.answer import choose, write_answers
from espalier.exam.task import Task, load_task
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.probe import probe


def evaluate(
    model_name_or_path: str,
    tasks: Sequence[str],
    *,
    out: Path,
    shots: int | None = None,
    limit: int | None = None,
    layout: str = "auto",
    template: str | None = None,
    seed: int = 42,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Examine a model on task files.

    Args:
        model_name_or_path: a folder or hub id; an adapter folder is merged into its base.
        tasks: YAML files, see `espalier.exam.task`.
        out: where ``results.json`` and ``TASK.jsonl`` go.
        shots, limit, seed: see `load_task`.
        layout: auto, tree or padded.
        template: ask as a user turn of a chat template; None: plain text.
        quiet: print no table.

    Returns:
        What results.json holds.

    Raises:
        UserError: a task or model that cannot be read.
    """
    loaded = [load_task(name, shots=shots, limit=limit, seed=seed) for name in tasks]
    lm = load.load_with_adapter(model_name_or_path, trust_remote_code=trust_remote_code)
    tokenizer = load.load_tokenizer(model_name_or_path, trust_remote_code=trust_remote_code)
    lm = lm.to("cuda" if torch.cuda.is_available() else "cpu")
    model = TreeModel(lm, probe(lm, wanted=layout)).eval()
    asked = None if template is None else choose_template(tokenizer, template)
    return run_tasks(model, tokenizer, loaded, out, name=model_name_or_path, template=asked, quiet=quiet)


def run_tasks(
    model: TreeModel,
    tokenizer: Any,
    tasks: Sequence[Task],
    out: Path,
    *,
    name: str,
    template: Template | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Examine a model that is in memory; every finished task is written before the next one begins."""
    results: dict[str, Any] = {
        "model": name,
        "layout": "padded" if model.traits.method == "padded" else "tree",
        "template": None if template is None else type(template).__name__,
        "tasks": {},
        "prefixes": {},
    }
    out.mkdir(parents=True, exist_ok=True)
    with _progress(quiet) as bar:
        for task in tasks:
            line = bar.add_task(task.name, total=len(task.questions))
            rows, row = _run(model, tokenizer, task, template, lambda n, line=line: bar.advance(line, n))
            if task.prefix and template is None:
                key = hashlib.sha256(task.prefix.encode()).hexdigest()[:12]
                results["prefixes"][key] = task.prefix
                for each in rows:
                    each["prefix"] = key
            lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
            files.write_text(out / f"{task.name}.jsonl", lines)
            results["tasks"][task.name] = row
            files.write_json(out / "results.json", results)
    if not quiet:
        Console().print(table(results))
    return results


def _run(
    model: TreeModel, tokenizer: Any, task: Task, template: Template | None, advance: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    start = time.perf_counter()
    prompts = [_whole(task.prefix + q.prompt, template) for q in task.questions]
    kind = _choose if task.questions[0].candidates else _write
    rows, right, cost = kind(model, tokenizer, task, prompts, template, advance)
    summary = {
        "n": len(rows),
        "shots": task.shots,
        "metrics": scores.judged(right, task.metric),
        "chance": scores.chance(task.questions),
        "majority": scores.majority(task.questions),
        "seconds": round(time.perf_counter() - start, 3),
        "tokens_computed": cost.computed,
        "tokens_unshared": cost.unshared,
    }
    return rows, summary


def _choose(
    model: TreeModel, tokenizer: Any, task: Task, prompts: list[str], template: Template | None, advance: Any
) -> Any:
    strip = template is not None  # a turn begins with the answer itself
    texts = [tuple(t.lstrip() if strip else t for t in q.candidates) for q in task.questions]
    found, cost = choose(model, tokenizer, list(zip(prompts, texts, strict=True)), advance=advance)
    rows, right = [], []
    for question, whole, candidates, scored in zip(task.questions, prompts, texts, found, strict=True):
        said = scores.predicted(scored, task.normalise)
        right.append(said == question.gold)
        rows.append(
            {
                "id": question.id,
                "prefix": None,
                "prompt": question.prompt
                if template is None
                else whole,  # a template stands around the shots too
                "candidates": [{"text": text, "scored_from": 0} for text in candidates],
                "scores": scored.scores,
                "tokens": scored.tokens,
                "normalise": task.normalise,
                "gold": question.gold,
                "prediction": said,
            }
        )
    return rows, right, cost


def _write(
    model: TreeModel, tokenizer: Any, task: Task, prompts: list[str], template: Template | None, advance: Any
) -> Any:
    ends = tuple(load.end_tokens(model.lm, tokenizer))
    texts, cost = write_answers(
        model,
        tokenizer,
        prompts,
        max_new_tokens=task.max_new_tokens,
        stop=task.stop,
        end_tokens=ends,
        advance=advance,
    )
    rows, right = [], []
    for question, whole, text in zip(task.questions, prompts, texts, strict=True):
        right.append(scores.is_right(text, question.references, task.metric))
        rows.append(
            {
                "id": question.id,
                "prefix": None,
                "prompt": question.prompt
                if template is None
                else whole,  # a template stands around the shots too
                "text": text,
                "references": list(question.references),
                "metrics": {task.metric: float(right[-1])},
            }
        )
    return rows, right, cost


def _whole(text: str, template: Template | None) -> str:
    return text if template is None else prompt_text(template, [Message("user", text)])


def _progress(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True)


def table(results: dict[str, Any]) -> Table:
    """The results as a table, with what blind guessing would reach."""
    made = Table(title=f"{results['model']} ({results['layout']} layout)")
    for column in (
        "task",
        "n",
        "shots",
        "metric",
        "value ± stderr",
        "chance",
        "majority",
        "saved by sharing",
        "seconds",
    ):
        made.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for name, row in results["tasks"].items():
        metric = next(iter(row["metrics"]))
        value, error = row["metrics"][metric], row["metrics"][f"{metric}_stderr"]
        saved = 1 - row["tokens_computed"] / max(1, row["tokens_unshared"])
        made.add_row(
            name,
            str(row["n"]),
            str(row["shots"]),
            metric,
            f"{value:.3f} ± {error:.3f}",
            f"{row['chance']:.3f}" if row["chance"] else "-",
            f"{row['majority']:.3f}" if row["majority"] else "-",
            f"{saved:.0%}",
            f"{row['seconds']:.1f}",
        )
    return made
