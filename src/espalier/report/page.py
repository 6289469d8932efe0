"""A run folder as one self-contained HTML page: what each stage did, its curves, samples, exams, tokens and times.

`write_report(run)` reads what the stages wrote (see "A run folder" in the documentation) and nothing else. The page
loads nothing from anywhere: styles and curves are inline, and text from files is escaped by the template. Left out:
comparing two runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from espalier.disk.writing import write_text
from espalier.report.data import data_view
from espalier.report.exam_table import exam_table
from espalier.report.exams import comparisons, exam_cards, judged_pairs
from espalier.report.plots import Chart, chart, number, percent, show, show_estimate, show_seconds
from espalier.report.read import Row, Run, StageRecord, mapping, read_run
from espalier.report.templates import page_maker

NOT_CURVES = {"step", "epoch", "tokens"}
MACHINE = ["learning_rate", "grad_norm", "tokens_per_second", "memory_bytes"]
FIRST = [
    "loss",
    "exact_match",
    "accuracy",
    "reward",
    "yardstick",
    "reward_greedy",
    "yardstick_greedy",
    "kl",
    "margin",
]
MOST_SAMPLES = 8


def write_report(run: Path) -> Path:
    """Writes RUN/report.html from what the folder holds now, and returns its path.

    run: a run folder. The page replaces an older one in one step, so that a reader never meets half of it.
    Raises UserError when the folder does not exist or holds nothing that a run writes, or the disk refuses the page.
    """
    page = render(read_run(Path(run)))
    target = Path(run) / "report.html"
    write_text(target, page)
    return target


def render(run: Run) -> str:
    """The page as text."""
    here = page_maker()
    here.filters.update(show=show, seconds=show_seconds, estimate=show_estimate)
    statuses = [stage.status for stage in run.stages]
    status = next(
        (s for s in ("running", "failed", "stopped", "unfinished", "waiting") if s in statuses), "done"
    )
    times = _times(run)
    return here.get_template("page.html.jinja").render(
        title=run.path.resolve().name,
        status=status,
        as_of=datetime.fromtimestamp(run.newest, UTC).strftime("%Y-%m-%d %H:%M UTC") if run.newest else "",
        notes=run.notes,
        total_seconds=sum(seconds for _, seconds in times),
        done=statuses.count("done"),
        stages=[_stage_view(stage) for stage in run.stages],
        exams=exam_cards(run.exams),
        exam_table=exam_table(run.exams),
        comparisons=comparisons(run.comparisons),
        judged=judged_pairs(run.judged),
        exam_models=[(name, str(results.get("model", ""))) for name, results in run.exams],
        savings=_savings(run),
        times=[(name, seconds, seconds / max(s for _, s in times)) for name, seconds in times if seconds > 0],
        config_text=run.config_text,
        facts=_facts(run.stages),
        data=sorted({(f, str(h)) for s in run.stages for f, h in mapping(s.summary.get("data")).items()}),
    )


def _stage_view(stage: StageRecord) -> Row:
    summary = stage.summary
    curves, machine = _charts(stage.rows)
    warnings = _warnings(summary)
    last = stage.rows[-1] if stage.rows else {}
    peak = max((v for r in stage.rows if (v := number(r.get("memory_bytes"))) is not None), default=None)
    final = {k: v for k, raw in mapping(summary.get("final")).items() if (v := number(raw)) is not None}
    return {
        "name": stage.name,
        "kind": str(summary.get("stage") or stage.name),
        "status": stage.status,
        "steps": number(summary.get("steps")) or number(last.get("step")),
        "seconds": number(summary.get("seconds")),
        "tokens": next((v for r in reversed(stage.rows) if (v := number(r.get("tokens"))) is not None), None),
        "memory": peak,
        "layout": str(summary.get("layout") or ""),
        "layout_reason": str(summary.get("layout_reason") or ""),
        "held_out": _held_out(mapping(summary.get("held_out")), warnings),
        "warnings": warnings,
        "beside": _beside(stage.rows),
        "final": [(name, show(value, name)) for name, value in final.items()],
        "curves": curves,
        "machine": machine,
        "samples": _before_after(stage.samples),
        "data": data_view(mapping(summary.get("preflight"))),
    }


def _warnings(summary: Row) -> list[Row]:
    """What a stage has warned of: step, kind and text of each."""
    rows = summary.get("warnings")
    return [
        {"step": number(row.get("step")), "kind": str(row.get("kind", "")), "text": str(row.get("text", ""))}
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    ]


def _beside(rows: list[Row]) -> list[Row]:
    """The yardstick beside the reward at the first evaluation and the last, of sampled and of greedy answers."""
    found = []
    for name in ("yardstick", "yardstick_greedy"):
        seen = [row for row in rows if number(row.get(f"eval_{name}")) is not None]
        if seen:
            ends = {
                when: (number(row.get(f"eval_{name}")), number(row.get(f"eval_{name}_stderr")))
                for when, row in (("before", seen[0]), ("after", seen[-1]))
            }
            found.append({"name": name, **ends})
    return found


def _held_out(numbers: Row, warnings: list[Row]) -> Row | None:
    """The stage's own number before and after, and whether the change is more than noise (two standard errors).

    A reward that rose while the yardstick fell is not called better.
    """
    before, after = number(numbers.get("before")), number(numbers.get("after"))
    if before is None and after is None:
        return None
    errors = [number(numbers.get("stderr_before")), number(numbers.get("stderr_after"))]
    error = math.hypot(*(e or 0.0 for e in errors))
    verdict = ""
    if before is not None and after is not None:
        gain = (after - before) * (-1 if numbers.get("better") == "lower" else 1)
        verdict = "within noise" if abs(gain) <= 2 * error else "better" if gain > 0 else "worse"
        fooled = any(warning["kind"].startswith("yardstick") for warning in warnings)
        verdict = "not by the yardstick" if verdict == "better" and fooled else verdict
    return {
        "name": str(numbers.get("name", "")),
        "better": str(numbers.get("better", "higher")),
        "before": before,
        "after": after,
        "stderr_before": errors[0],
        "stderr_after": errors[1],
        "n": number(numbers.get("n")),
        "change": after - before if before is not None and after is not None else None,
        "error": error,
        "verdict": verdict,
    }


def _charts(rows: list[Row]) -> tuple[list[Chart], list[Chart]]:
    """Charts of what was learnt and of how the machine did; a number and its held-out twin share one chart."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        step = number(row.get("step"))
        for name, raw in row.items():
            value = number(raw)
            curve = name not in NOT_CURVES and not name.endswith("_stderr")
            if step is not None and value is not None and curve:
                points.setdefault(name, []).append((step, value))
    names = list(dict.fromkeys(name.removeprefix("eval_") for name in points))
    names.sort(key=lambda n: FIRST.index(n) if n in FIRST else len(FIRST))
    drawn = [
        (
            name,
            chart(name, [("training", points.get(name, [])), ("held out", points.get(f"eval_{name}", []))]),
        )
        for name in names
    ]
    curves = [c for name, c in drawn if c is not None and name not in MACHINE]
    return curves, [c for name, c in drawn if c is not None and name in MACHINE]


def _before_after(samples: list[Row]) -> list[Row]:
    """For each prompt its first and its last answer; prompts that were answered twice come first."""
    by_prompt: dict[str, list[Row]] = {}
    for sample in samples:
        by_prompt.setdefault(_plain(sample.get("prompt")), []).append(sample)
    views = []
    for prompt, answers in by_prompt.items():
        answers.sort(key=lambda a: number(a.get("step")) or 0.0)
        ends = answers[:1] if answers[0].get("step") == answers[-1].get("step") else [answers[0], answers[-1]]
        views.append(
            {
                "prompt": prompt,
                "reference": _plain(ends[-1].get("reference")),
                "answers": [
                    {
                        "step": number(a.get("step")),
                        "completion": _plain(a.get("completion")),
                        "reward": number(a.get("reward")),
                    }
                    for a in ends
                ],
            }
        )
    return sorted(views, key=lambda view: -len(view["answers"]))[:MOST_SAMPLES]


def _savings(run: Run) -> list[Row]:
    """How many tokens sharing kept from being computed: of stages in their rows, of exams in all their tasks."""

    def pairs() -> Iterator[tuple[str, float | None, float | None]]:
        for stage in run.stages:
            yield (
                stage.name,
                number(stage.summary.get("tokens_in_paths")),
                number(stage.summary.get("tokens_in_rows")),
            )
        for name, results in run.exams:
            tasks = [mapping(task) for task in mapping(results.get("tasks")).values()]
            apart = sum(number(task.get("tokens_unshared")) or 0 for task in tasks)
            yield name, apart, sum(number(task.get("tokens_computed")) or 0 for task in tasks)

    return [
        {
            "name": name,
            "apart": apart,
            "shared": shared,
            "kept": percent(shared / apart),
            "saved": 1 - shared / apart,
        }
        for name, apart, shared in pairs()
        if apart and shared
    ]


def _times(run: Run) -> list[tuple[str, float]]:
    stages = [(stage.name, number(stage.summary.get("seconds")) or 0.0) for stage in run.stages]
    exams = [
        (name, sum(number(mapping(t).get("seconds")) or 0.0 for t in mapping(results.get("tasks")).values()))
        for name, results in run.exams
    ]
    return [(name, seconds) for name, seconds in stages + exams if seconds > 0]


def _facts(stages: list[StageRecord]) -> list[tuple[str, str]]:
    """Device, seed and versions; a fact on which stages differ shows all its values."""
    seen: dict[str, dict[str, None]] = {}
    for stage in stages:
        own = {"device": stage.summary.get("device"), "seed": stage.summary.get("seed")}
        for name, value in {**own, **mapping(stage.summary.get("versions"))}.items():
            if value is not None:
                seen.setdefault(name, {})[str(value)] = None
    return [(name, ", ".join(values)) for name, values in seen.items()]


def _plain(value: Any) -> str:
    """Text of a prompt or an answer, which is a string or a list of chat messages."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "\n".join(f"{mapping(m).get('role', '')}: {mapping(m).get('content', m)}" for m in value)
    return str(value)
