"""`espalier judge`: the written answers of several models, compared in pairs by a judge; what is judged is kept."""

from __future__ import annotations

import hashlib
import json
from itertools import combinations
from pathlib import Path
from typing import Any

from espalier.checking.endpoint import Endpoint
from espalier.disk.lock import owned
from espalier.disk.reading import object_or_nothing
from espalier.disk.writing import writing_to
from espalier.engine import files
from espalier.engine.signals import StopSignal
from espalier.errors import Stopped, UserError
from espalier.exam.judges.pairwise import ASKED, preference
from espalier.exam.numbers.wins import wins
from espalier.report.side_by_side import written_questions, written_tasks


def judge_all(out: Path, judge: Endpoint) -> list[dict[str, Any]]:
    """Every pair of models on every exam with written answers; ``out/judge.json`` has the numbers.

    ``out/judge.jsonl`` gets a line a question as soon as it is judged, and what it has is not asked again.

    Args:
        out: of an `espalier evaluate` with several models.
        judge: who is asked.

    Returns:
        A row a pair and task: see `espalier.exam.numbers.wins.wins`, ``unreadable``, questions without a
        verdict, and ``unanswered``, those that were left out for one of the models.

    Raises:
        UserError: there are no two models with written answers, or the judge cannot be asked.
        Stopped: a signal came; what is judged is kept.
    """
    folders = object_or_nothing(out / "compare.json").get("models", {})
    models = {folder: object_or_nothing(out / folder / "results.json") for folder in folders}
    tasks = written_tasks(models) if all("tasks" in results for results in models.values()) else []
    if len(models) < 2 or not tasks:
        raise UserError(
            f"{out}: no two models with written answers; run `espalier evaluate` with two models and "
            "an exam such as generation:FILE first."
        )
    with owned(out / ".judge.lock", out, "wait for it"), StopSignal() as signal:
        known = _Known(out / "judge.jsonl", judge)
        rows = []
        for task in tasks:
            questions = written_questions(out, models, task)
            for (i, a), (j, b) in combinations(enumerate(models), 2):
                judged, unanswered = [], 0
                for question in questions:
                    texts = [question["answers"][place][0][:1] for place in (i, j)]
                    unanswered += not all(texts)
                    if all(texts):
                        judged.append(known.judged(question["asked"], texts[0][0], texts[1][0]))
                    if signal.asked:
                        raise Stopped(f"stopped; what is judged is kept in {out / 'judge.jsonl'}.")
                rows.append({"task": task, "a": folders[a], "b": folders[b]} | _numbers(judged))
                rows[-1]["unanswered"] = unanswered
        files.write_json(out / "judge.json", {"judge": judge.model, "url": judge.url, "pairs": rows})
    return rows


def _numbers(judged: list[dict[str, Any]]) -> dict[str, Any]:
    whole = [row for row in judged if None not in row["worth"]]
    numbers: dict[str, Any] = {"n": 0}
    if whole:
        values = [sum(row["worth"]) / 2 for row in whole]
        numbers = wins(values, [row["longer"] for row in whole])
    by_order = sum(set(row["worth"]) == {0.0, 1.0} for row in whole)
    return numbers | {"order_decided": by_order, "unreadable": len(judged) - len(whole)}


class _Known:
    """What is judged, by a hash of all that the judge was asked."""

    def __init__(self, path: Path, judge: Endpoint) -> None:
        self._path, self._judge = path, judge
        self._rows: dict[str, dict[str, Any]] = {}
        text = path.read_text("utf-8") if path.is_file() else ""
        self._before = "\n" if text and not text.endswith("\n") else ""  # ends a line that was cut off
        for line in text.split("\n"):
            row = _row(line)
            self._rows[row.get("key", "")] = row

    def judged(self, question: str, a: str, b: str) -> dict[str, Any]:
        """``worth`` of b as the last and as the first answer, and by how many characters b is ``longer``."""
        asked = json.dumps([ASKED, self._judge.url, self._judge.model, question, a, b])
        key = hashlib.sha256(asked.encode()).hexdigest()[:24]
        if key not in self._rows:
            worth = preference(self._judge, question, a, b)
            row = {"key": key, "worth": list(worth), "longer": len(b) - len(a)}
            self._rows[key] = row | {"question": question, "a": a, "b": b}
            with writing_to(self._path), self._path.open("a", encoding="utf-8") as stream:
                stream.write(self._before + json.dumps(self._rows[key], ensure_ascii=False) + "\n")
            self._before = ""
        return self._rows[key]


def _row(line: str) -> dict[str, Any]:
    """A line that was written whole; {} for half a one, whose question is judged again."""
    try:
        row: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return row
