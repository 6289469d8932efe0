"""Geometry of the report's curves and the spelling of its numbers; the template draws them.

A chart is worked out here as plain coordinates in a fixed box (340 x 170, y down) and written by the template as a
small inline SVG, so that a page stays sharp at every size, follows the reader's light or dark colours, and needs
neither a plotting library nor a script. Left out: log scales and anything interactive beyond the browser's own hint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 340, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 24
MOST_POINTS = 160  # more than two per drawn pixel column is only weight

Point = tuple[float, float]


@dataclass
class Line:
    """One curve: `path` is SVG path data, `dots` are (x, y, hint) of its points, `last` its newest value as text."""

    label: str
    path: str
    dots: list[tuple[float, float, str]]
    last: str


@dataclass
class Chart:
    """One box with its curves; a tick is (place in the box, text), and `across` says what is counted from left to right."""

    name: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    across: str = "step"


def number(value: Any) -> float | None:
    """`value` as a finite float, else None: a file may hold null, NaN or text where a number should be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def show(value: float | None, name: str = "") -> str:
    """A number for people, about four digits; the name of the metric decides between bytes, counts and the rest.

    show(0.123456) == "0.1235", show(1234567) == "1,234,567", show(2.5e9, "memory_bytes") == "2.5 GB"
    """
    if value is None:
        return "–"
    if name.endswith("_bytes"):
        return show_bytes(value)
    size = abs(value)
    if size >= 1000 or (value == int(value) and size < 1000):
        return f"{value:,.0f}"
    if size < 0.001:
        return f"{value:.2e}".replace("e-0", "e-")
    return f"{value:.4g}" if size < 100 else f"{value:.1f}"


def show_estimate(value: float | None, stderr: float | None, name: str = "") -> tuple[str, str]:
    """(value, error) as text with the decimals that the error earns, two digits of it: ("0.760", "0.033").

    Without an error, or with an error of 0, the value is `show`n and the error text is empty or "0".
    """
    if value is None or stderr is None or stderr <= 0 or name.endswith("_bytes"):
        return show(value, name), "" if stderr is None else show(stderr, name)
    decimals = min(max(1 - math.floor(math.log10(stderr)), 0), 6)
    return f"{value:,.{decimals}f}", f"{stderr:,.{decimals}f}"


def percent(share: float) -> str:
    """A share of 1 as a length of CSS, cut to 0 and 100 %."""
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def show_bytes(value: float) -> str:
    """Bytes in the decimal unit that keeps the number short: 2.5e9 -> "2.5 GB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def show_seconds(value: float | None) -> str:
    """Seconds as people say them: 75.3 -> "1 min 15 s"."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def chart(name: str, curves: Sequence[tuple[str, Sequence[Point]]], across: str = "step") -> Chart | None:
    """Works out a chart of (label, points) curves, each point (step, value); None when no curve has a point.

    across: what the first number of a point is.
    """
    curves = [(label, thin(points)) for label, points in curves if points]
    if not curves:
        return None
    everything = [point for _, points in curves for point in points]
    x_low, x_high = _spread(x for x, _ in everything)
    # Memory hardly moves: without some room all its ticks would read the same.
    y_low, y_high = _spread((y for _, y in everything), least=0.1 if name.endswith("_bytes") else 1e-12)
    y_marks = ticks(y_low, y_high, 4)
    y_low, y_high = min(y_low, y_marks[0]), max(y_high, y_marks[-1])

    def place(point: Point) -> Point:
        across = (point[0] - x_low) / (x_high - x_low)
        up = (point[1] - y_low) / (y_high - y_low)
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    lines = []
    for label, points in curves:
        places = [place(point) for point in points]
        path = "M" + "L".join(f"{x:g},{y:g}" for x, y in places)
        dots = [
            (x, y, f"{across} {step:g}: {show(value, name)}")
            for (x, y), (step, value) in zip(places, points, strict=True)
        ]
        lines.append(Line(label, path, dots, show(points[-1][1], name)))
    x_marks = [mark for mark in ticks(x_low, x_high, 4) if x_low <= mark <= x_high and mark == int(mark)]
    return Chart(
        name,
        lines,
        [(place((mark, y_low))[0], _short(mark)) for mark in x_marks],
        [(place((x_low, mark))[1], _short(mark, name)) for mark in y_marks],
        across,
    )


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: neighbours are averaged in equal runs, and the newest point is kept as it is."""
    if len(points) <= most:
        return list(points)
    run = math.ceil((len(points) - 1) / (most - 1))
    runs = [points[i : min(i + run, len(points) - 1)] for i in range(0, len(points) - 1, run)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in runs]
    return [*means, points[-1]]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) that span [low, high], roughly `about` of them."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _spread(values: Iterable[float], least: float = 1e-12) -> Point:
    """Lowest and highest value, pushed apart when they are within a share `least` of each other."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    size = max(abs(low), abs(high))
    if high - low > least * size:
        return low, high
    room = size * 0.1 or 1.0
    return low - room, high + room


def _short(value: float, name: str = "") -> str:
    """A tick's text, at most six characters wide."""
    if name.endswith("_bytes"):
        return show_bytes(value)
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1e6:g}M" if size >= 1e6 else f"{value / 1e3:g}k"
    if 0 < size < 0.001:
        return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    return f"{value:g}"
