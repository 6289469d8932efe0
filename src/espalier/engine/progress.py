"""What a person sees while a stage runs: one live line on a terminal, plain lines in a log.

Leaves out what is measured; :mod:`espalier.engine.track` hands over the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from espalier.screen import Screen

_QUIET = ("step", "epoch", "tokens", "memory_bytes")
"""Columns of a row that a log line leaves out; metrics.jsonl has them."""

_WIDE = 90
"""Columns from which on a bar leaves room for the numbers."""

_ERROR = "_stderr"
"""What the name of a number's standard error ends with; it is shown behind the number."""


class ProgressLine:
    """One stage's progress.

    Args:
        name: what the line begins with.
        total_steps: None when the feed's length is not known.
        console: where to; a live line if it is a terminal. None: stderr, so that stdout stays free for tables.
    """

    def __init__(self, name: str, total_steps: int | None, console: Screen | None = None) -> None:
        self._name, self._total = name, total_steps
        self._console = console or Screen(stderr=True)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        if self._console.is_terminal:
            bar = [BarColumn(bar_width=20)] if self._console.width >= _WIDE else []
            columns = (
                TextColumn("{task.description}", markup=False),
                *bar,
                TextColumn("{task.fields[text]}", markup=False),
            )
            self._live = Progress(SpinnerColumn(), *columns, console=self._console, refresh_per_second=4)
            self._task = self._live.add_task(name, total=total_steps, text="")
            self._live.start()

    def move(self, step: int, text: str) -> None:
        """After every step; only a live line shows it."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=step, text=f"{self._steps(step)} {text}")

    def say(self, step: int, text: str) -> None:
        """One plain line, kept: above the live line on a terminal, alone in a log."""
        self._console.say(f"{self._name} {self._steps(step)} {text}")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def is_live(self) -> bool:
        return self._live is not None

    def _steps(self, step: int) -> str:
        return f"{step}/{self._total}" if self._total is not None else str(step)


def in_words(numbers: Mapping[str, float | int | None]) -> str:
    """The numbers of one row for a line: ``eval_loss 2.311 ± 0.012  learning_rate 5e-05  tokens_per_second 1,234``."""
    parts = []
    for name, value in numbers.items():
        if name in _QUIET or name.removesuffix(_ERROR) in numbers.keys() - {name}:
            continue
        shown = "not finite" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        error = numbers.get(name + _ERROR)
        parts.append(f"{name} {shown}" + ("" if error is None else f" ± {error:.2g}"))
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """``0:01:05``; hours may pass 24."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
