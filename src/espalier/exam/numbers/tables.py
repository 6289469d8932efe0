"""Results as tables for a terminal of eighty columns."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from espalier.report.exam_rows import metrics_of, shots_shown


def first_metric(row: dict[str, Any]) -> str | None:
    """The metric that a task's row is judged by; None where no right answers are known."""
    return next(iter(row["metrics"]), None)


def results_table(results: dict[str, Any]) -> Table:
    """One line a task: its number with standard error beside what blind guessing reaches, and the saving."""
    title = f"{results['model']} ({results['layout']} layout)"
    made = Table(title=title, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("exam", overflow="fold")
    for column in ("n", "shots", "metric", "value", "chance", "major.", "saved", "s"):
        made.add_column(column, justify="left" if column == "metric" else "right", no_wrap=True)
    for name, row in results["tasks"].items():
        metric = first_metric(row)
        saved = 1 - row["tokens_computed"] / max(1, row["tokens_unshared"])
        made.add_row(
            name,
            str(row["n"]),
            shots_shown(row),
            metric or "no labels",
            "-" if metric is None else with_error(row["metrics"], metric),
            _share(row.get("chance")),
            _share(row.get("majority")),
            f"{saved:.0%}",
            f"{row['seconds']:.0f}" if row["seconds"] >= 10 else f"{row['seconds']:.1f}",
        )
        for other in metrics_of(row)[1:]:
            made.add_row(*[""] * 3, other, with_error(row["metrics"], other), *[""] * 4)
        for part, numbers in row.get("parts", {}).items():
            if metric is not None:
                made.add_row(
                    f"  {part}",
                    str(numbers["n"]),
                    "",
                    "",
                    with_error(numbers, metric),
                    *[""] * 4,
                )
    return made


def with_error(numbers: dict[str, Any], metric: str) -> str:
    """Value ± standard error; one number alone has none."""
    error = numbers.get(f"{metric}_stderr")
    return f"{numbers[metric]:.3f}" + ("" if error is None else f"±{error:.3f}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
