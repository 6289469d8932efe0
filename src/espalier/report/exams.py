"""Exams on the page: a card a task and metric, and the differences between models that were compared."""

from __future__ import annotations

from typing import Any

from espalier.report.exam_rows import exam_notes, metrics_of, shots_shown
from espalier.report.exam_table import LOWER_IS_BETTER
from espalier.report.plots import Chart, chart, number, percent
from espalier.report.read import Row, mapping


def exam_cards(exams: list[tuple[str, Row]]) -> list[Row]:
    """One card a task and metric: a line for each exam with value, error bar and n, all on one scale."""
    cards: dict[tuple[str, str], list[Row]] = {}
    for exam, results in exams:
        for task, result in mapping(results.get("tasks")).items():
            for metric in metrics_of(mapping(result)):
                cards.setdefault((task, metric), []).append(_line(exam, result, metric))
    return [_card(task, metric, lines) for (task, metric), lines in cards.items()]


def _line(exam: str, result: Row, metric: str) -> Row:
    metrics = mapping(result.get("metrics"))
    parts = [
        (
            name,
            number(mapping(part).get(metric)),
            number(mapping(part).get(f"{metric}_stderr")),
            number(mapping(part).get("n")),
        )
        for name, part in mapping(result.get("parts")).items()
    ]
    return {
        "exam": exam,
        "value": number(metrics[metric]),
        "stderr": number(metrics.get(f"{metric}_stderr")),
        "n": number(result.get("n")),
        "shots": shots_shown(result) if "shots" in result else None,
        # How sure a reward model is belongs to how often it is right.
        "notes": exam_notes(result if metric == "accuracy" else {**result, "calibration": None}),
        "parts": [part for part in parts if part[1] is not None],
        "calibration": _calibration(exam, result) if metric == "accuracy" else None,
        "blind": {} if metric not in ("accuracy", "macro_accuracy") else _blind(result),
    }


def _calibration(exam: str, result: Row) -> Chart | None:
    """How many pairs a reward model has right (%), by how sure it is of them (%), beside what would be right."""
    bins = [mapping(row) for row in mapping(result.get("calibration")).get("bins") or []]
    points = [(100 * row["confidence"], 100 * row["accuracy"]) for row in bins]
    even = [(50.0, 50.0), (100.0, 100.0)]
    curves = [("as sure as right", even), ("held out", points)]
    return chart(f"{exam}: right of 100, by sureness", curves, "sureness, %") if points else None


def _blind(result: Row) -> dict[str, float]:
    """What needs no knowledge: guessing, and always the commonest answer."""
    scores = {
        name: number(result.get(key)) for name, key in (("guessing", "chance"), ("majority", "majority"))
    }
    return {name: value for name, value in scores.items() if value is not None}


def _card(task: str, metric: str, lines: list[Row]) -> Row:
    top = max(max(abs(line["value"]) + (line["stderr"] or 0) for line in lines), 1e-9)
    top = 1.0 if top <= 1.05 else top
    choose = min if metric.endswith(LOWER_IS_BETTER) else max
    best = choose(line["value"] for line in lines)
    for line in lines:
        error = line["stderr"] or 0
        line["width"] = percent(abs(line["value"]) / top)
        line["low"] = percent((abs(line["value"]) - error) / top)
        line["high"] = percent((abs(line["value"]) + error) / top)
        line["best"] = line["value"] == best and any(other["value"] != best for other in lines)
        line["marks"] = [percent(value / top) for value in line["blind"].values()]
    n = sorted({line["n"] for line in lines if line["n"] is not None})
    shots = sorted({line["shots"] for line in lines if line["shots"] is not None})
    return {
        "task": task,
        "metric": metric,
        "lines": lines,
        "n": n,
        "shots": shots,
        "blind": [(name, f"{value:.3f}") for name, value in lines[0]["blind"].items()],
        "charts": [line["calibration"] for line in lines if line["calibration"] is not None],
        "parts": any(line["parts"] for line in lines),
    }


def comparisons(results: list[Row]) -> list[Row]:
    """Pairs of models with their differences on one scale around zero, task by task."""
    pairs: dict[tuple[str, str], list[Row]] = {}
    for comparison in results:
        for pair in comparison.get("pairs") or []:
            pairs.setdefault((str(pair.get("a")), str(pair.get("b"))), []).append(mapping(pair))
    return [{"a": a, "b": b, "lines": _differences(rows)} for (a, b), rows in pairs.items()]


def _differences(rows: list[Row]) -> list[Row]:
    reach = (
        max((abs(number(row.get(key)) or 0.0) for row in rows for key in ("low", "high")), default=0.0) or 1.0
    )
    lines = []
    for row in rows:
        value, low, high = (number(row.get(key)) or 0.0 for key in ("difference", "low", "high"))
        verdict = "b is better" if low > 0 else "a is better" if high < 0 else "no difference beyond noise"
        if str(row.get("metric", "")).endswith(LOWER_IS_BETTER):
            verdict = verdict.replace("b is", "? is").replace("a is", "b is").replace("? is", "a is")
        lines.append(
            {
                "task": row.get("task"),
                "metric": row.get("metric"),
                "n": number(row.get("n")),
                "means": [_shown(row.get("mean_a")), _shown(row.get("mean_b"))],
                "difference": f"{value:+.3f} [{low:+.3f}, {high:+.3f}]",
                "p": _shown(row.get("mcnemar_p")),
                "at": percent((value / reach + 1) / 2),
                "left": percent((low / reach + 1) / 2),
                "right": percent((1 - high / reach) / 2),
                "verdict": verdict,
            }
        )
    return lines


def judged_pairs(results: list[Row]) -> list[Row]:
    """What judges said of written answers: a table a judge, a line a pair and exam; of an unreadable file nothing."""
    tables = []
    for result in results:
        pairs = [mapping(pair) for pair in result.get("pairs") or []]
        if pairs:
            tables.append({"judge": str(result.get("judge") or "a judge"), "lines": [*map(_judged, pairs)]})
    return tables


def _judged(pair: Row) -> Row:
    rate, error = number(pair.get("win_rate")), number(pair.get("stderr"))
    counts = {name: number(pair.get(name)) or 0 for name in ("order_decided", "unreadable", "unanswered")}
    words = {
        "order_decided": "ties by the order alone",
        "unreadable": "without a verdict",
        "unanswered": "not answered by both",
    }
    beyond = rate is not None and error is not None and abs(rate - 0.5) > 2 * error
    return {
        "task": pair.get("task"),
        "pair": f"{pair.get('b')} against {pair.get('a')}",
        "n": number(pair.get("n")),
        "win_rate": _shown(rate) + ("" if error is None or rate is None else f" ± {error:.3f}"),
        "equal_length": _shown(pair.get("length_controlled")),
        "counts": ", ".join(str(pair.get(name, 0)) for name in ("wins", "ties", "losses")),
        "verdict": f"{pair.get('b' if (rate or 0) > 0.5 else 'a')} is better"
        if beyond
        else "no difference beyond noise",
        "left_out": ", ".join(f"{count:g} {words[name]}" for name, count in counts.items() if count),
    }


def _shown(value: Any) -> str:
    score = number(value)
    return "–" if score is None else f"{score:.3f}"
