"""Numbers that carry their own reduction, and where they go.

A stage returns ``{"loss": (sum, weight), "accuracy": (right, pairs)}`` for each micro-batch. `Meter` adds sums and
weights over micro-batches, steps and ranks and divides once, so a mean does not depend on how a step was split.
`Tracker` writes the means of a logging step to metrics.jsonl, the trackers and the screen.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from torch import Tensor

from espalier.engine.files import disk_error, write_text
from espalier.engine.progress import ProgressLine, clock, in_words
from espalier.engine.trackers import Sink
from espalier.screen import Screen

Scalar = Tensor | float
Numbers = Mapping[str, tuple[Scalar, Scalar]]
Reduce = Callable[[list[float]], list[float]]


def alone(values: list[float]) -> list[float]:
    """The sum over ranks where there is one rank."""
    return values


class Meter:
    """Sums and weights since the last reading, by name.

    >>> meter = Meter()
    >>> meter.add({"loss": (6.0, 3)})
    >>> meter.add({"loss": (2.0, 1)})
    >>> meter.means()
    {'loss': 2.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Scalar, Scalar]] = {}

    def add(self, numbers: Numbers, counts: bool = True) -> None:
        """Adds one micro-batch. Tensors stay where they are: nothing waits for a device until `means`.

        A micro-batch that only keeps the ranks alike (`counts` False) names its numbers and adds nothing.
        """
        for name, (total, weight) in numbers.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + _wide(total), before[1] + _wide(weight)) if counts else before

    def means(self, reduce: Reduce = alone) -> dict[str, float]:
        """name -> sum / weight since the last call; a number without any weight is left out.

        Args:
            reduce: a list of floats of this rank -> the elementwise sums over all ranks. Every rank must have named
                the same numbers by then, with weight 0 where it has nothing to say.
        """
        names = sorted(self._sums)
        own = [float(part) for name in names for part in self._sums[name]]
        # The names stay, so that a rank without a share of the next steps still has them.
        self._sums = dict.fromkeys(names, (0.0, 0.0))
        # Ranks that name different numbers would add apples to pears. 16 bits stay exact in a float32 reduction.
        check = float(zlib.crc32("\n".join(names).encode()) & 0xFFFF)
        ranks, checks = reduce([1.0, check])
        assert checks == ranks * check, f"ranks measured different numbers; this one has {names}"
        sums = reduce(own) if own else []
        pairs = zip(sums[0::2], sums[1::2], strict=True)
        return {name: total / weight for name, (total, weight) in zip(names, pairs, strict=True) if weight}


def _wide(value: Scalar) -> Scalar:
    """Long sums in double precision, cut off from the graph."""
    return value.detach().double() if isinstance(value, Tensor) else float(value)


class Tracker:
    """One stage's record: ``FOLDER/metrics.jsonl``, trackers, and the progress on the screen.

    On ranks other than the first it does nothing. A logged step's row holds step, epoch, tokens, loss, learning_rate,
    grad_norm, tokens_per_second, memory_bytes and the stage's own; an evaluation's row step and held-out numbers. A
    number that is not finite stands as null.

    Args:
        folder: the stage's folder; made when missing.
        name: what the screen calls the run.
        total_steps: optimiser steps, None when not known.
        trackers: opens the outside ones (`trackers.open_trackers`), on rank 0.
        main_process: whether this is rank 0.
        resumed_step: the step of the checkpoint that is continued, 0 for a new start. Rows after it are removed, for
            they will be written again.
        console: where the progress goes; None: stderr.

    Raises:
        UserError: a tracker's package is missing, or the disk refuses a row.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        total_steps: int | None,
        trackers: Callable[[], Sequence[Sink]] = tuple,
        main_process: bool = True,
        *,
        resumed_step: int = 0,
        console: Screen | None = None,
    ) -> None:
        self._main, self._total = main_process, total_steps
        self._path = folder / "metrics.jsonl"
        self._sinks: list[Sink] = []
        self._text = ""
        self._started_at, self._start_step = time.monotonic(), resumed_step
        if not main_process:
            return
        folder.mkdir(parents=True, exist_ok=True)
        keep_rows(self._path, resumed_step)
        self._sinks = list(trackers())
        self._line = ProgressLine(name, total_steps, console)

    def step(self, step: int) -> None:
        """After every optimiser step: moves the live line; a log shows nothing."""
        if self._main:
            self._line.move(step, f"{self._text}  {self._left(step)}".strip())

    def log(self, row: Mapping[str, float]) -> None:
        """One row, with its `step`. A logged step moves the live line or prints a plain one; an evaluation (a row
        without tokens_per_second) prints a line that stays."""
        if not self._main:
            return
        step, written = int(row["step"]), self._write(row)
        if "tokens_per_second" not in row:
            if words := in_words(written):  # nothing is held out: nothing to say
                self._line.say(step, words)
        elif self._line.is_live:
            self._text = in_words(
                {name: written.get(name) for name in ("loss", "tokens_per_second") if name in row}
            )
            self.step(step)
        else:
            self._line.say(step, f"{in_words(written)}  {self._left(step)}".rstrip())

    def say(self, step: int, text: str) -> None:
        """A line for the person that looks on, kept on the screen only."""
        if self._main:
            self._line.say(step, text)

    def close(self) -> None:
        """Closes the line and the trackers; the rows are already on the disk."""
        if self._main:
            self._line.close()
            for sink in self._sinks:
                sink.close()
            self._sinks = []

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, row: Mapping[str, float]) -> dict[str, float | None]:
        clean = {name: value if math.isfinite(value) else None for name, value in row.items()}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean, ensure_ascii=False) + "\n")
        except OSError as error:
            raise disk_error(self._path, error) from error
        finite = {name: float(value) for name, value in clean.items() if name != "step" and value is not None}
        for sink in self._sinks:
            sink.log(int(row["step"]), finite)
        return clean

    def _left(self, step: int) -> str:
        """The time that is left if the steps go on as they went since this start."""
        done = step - self._start_step
        if self._total is None or done <= 0:
            return ""
        return f"{clock((time.monotonic() - self._started_at) / done * (self._total - step))} left"


def keep_rows(path: Path, step: int) -> None:
    """Cuts metrics.jsonl to the rows up to `step` (0: none), whole or not at all; a half-written last row goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if step else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        at = row.get("step", 0) if isinstance(row, dict) else None
        if isinstance(at, int) and at <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))
