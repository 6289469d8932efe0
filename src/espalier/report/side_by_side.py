"""What several models wrote to the same questions, beside each other: as markdown and as a page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espalier.disk.writing import write_text
from espalier.errors import UserError
from espalier.report.exam_rows import metrics_of
from espalier.report.read import Row
from espalier.report.templates import page_maker


def write_side_by_side(out: Path, models: Mapping[str, Row]) -> list[Path]:
    """``out/side_by_side.md`` and ``.html``: each question with its right answers and what each model wrote.

    Args:
        out: below it lie the models' folders.
        models: what results.json holds, by the model's folder.

    Returns:
        The two paths.

    Raises:
        UserError: no exam among them has written answers.
    """
    tasks = {task: written_questions(out, models, task) for task in written_tasks(models)}
    if not tasks:
        raise UserError(
            "--side-by-side: none of these exams has written answers; ask one that has, such as generation:FILE."
        )
    names = [str(results["model"]) for results in models.values()]
    pages = {"md": _markdown(tasks, names), "html": _html(tasks, names)}
    for kind, text in pages.items():
        write_text(out / f"side_by_side.{kind}", text)
    return [out / f"side_by_side.{kind}" for kind in pages]


def written_tasks(models: Mapping[str, Row]) -> list[str]:
    """The exams whose answers are written, of any of the models."""
    rows = [(name, row) for results in models.values() for name, row in results["tasks"].items()]
    return list(dict.fromkeys(name for name, row in rows if "max_new_tokens" in row))


def written_questions(out: Path, models: Mapping[str, Row], task: str) -> list[Row]:
    """The questions of a task in the files' order; `answers` has a list of texts and a number for each model."""
    questions: dict[str, Row] = {}
    for place, (folder, results) in enumerate(models.items()):
        path = out / folder / f"{task}.jsonl"
        if task not in results["tasks"] or not path.is_file():
            continue
        metric = next(iter(metrics_of(results["tasks"][task])), "")
        with path.open(encoding="utf-8") as lines:
            for line in map(json.loads, lines):
                asked = questions.setdefault(
                    str(line["id"]), {"id": str(line["id"]), "answers": [([], "")] * len(models)}
                )
                asked["answers"][place] = _answers(line, metric)
                if "left_out" not in line and "asked" not in asked:
                    before = results["prefixes"].get(line["prefix"], "")
                    asked |= {"asked": before + line["prompt"], "right": line["references"]}
    return list(questions.values())


def _answers(line: Row, metric: str) -> tuple[list[str], str]:
    """A model's answers to a question, and the number that they got."""
    if "left_out" in line:
        return [], f"left out: {line['left_out']}"
    value = line["metrics"].get(metric)
    return line.get("texts", [line["text"]]), "" if value is None else f"{metric} {value:.3f}"


def _markdown(tasks: Mapping[str, list[Row]], models: list[str]) -> str:
    parts = ["# Answers side by side\n"]
    for task, questions in tasks.items():
        parts.append(f"## {task}\n")
        for question in questions:
            parts += [f"### {question['id']}\n", _fenced(question.get("asked", ""))]
            parts += ["**right**\n", *map(_fenced, question.get("right", []))]
            for model, (texts, said) in zip(models, question["answers"], strict=True):
                parts += [f"**{model}**" + f" ({said})" * bool(said) + "\n", *map(_fenced, texts)]
    return "\n".join(parts)


def _fenced(text: str) -> str:
    """A text that no mark in it changes.

    >>> print(_fenced("a ``` b"), end="")
    ````text
    a ``` b
    ````
    """
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}\n"


def _html(tasks: Mapping[str, Any], models: list[str]) -> str:
    return page_maker().get_template("side_by_side.html.jinja").render(tasks=tasks, models=models)
