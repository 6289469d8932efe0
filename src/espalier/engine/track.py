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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from rich.console import Console
from torch import Tensor

from espalier.engine.files import disk_error, write_text
from espalier.engine.progress import ProgressLine, clock, in_words
from espalier.engine.trackers import Sink, open_tracker

Scalar = Tensor | float
Numbers = Mapping[str, tuple[Scalar, Scalar]]
Reduce = Callable[[list[float]], list[float]]


def alone(values: list[float]) -> list[float]:
    """The sum over ranks where there is one rank."""
    return values


class Meter:
    """Sums and weights since the last reading.

    Args:
        reduce: a list of floats of this rank -> the elementwise sums over all ranks. Every rank must read at the
            same steps and with the same names (weight 0 where a rank has nothing to say).

    >>> meter = Meter()
    >>> meter.add({"loss": (6.0, 3)})
    >>> meter.add({"loss": (2.0, 1)})
    >>> meter.means()
    {'loss': 2.0}
    """

    def __init__(self, reduce: Reduce = alone) -> None:
        self._reduce = reduce
        self._sums: dict[str, tuple[Scalar, Scalar]] = {}

    def add(self, numbers: Numbers) -> None:
        """Adds one micro-batch. Tensors stay where they are: nothing waits for a device until `means`."""
        for name, (total, weight) in numbers.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + _wide(total), before[1] + _wide(weight))

    def means(self) -> dict[str, float]:
        """name -> sum / weight over all ranks since the last call; a number without any weight is left out."""
        names = sorted(self._sums)
        own = [float(part) for name in names for part in self._sums[name]]
        self._sums = {}
        # Ranks that name different numbers would add apples to pears. 16 bits stay exact in a float32 reduction.
        check = float(zlib.crc32("\n".join(names).encode()) & 0xFFFF)
        ranks, checks = self._reduce([1.0, check])
        assert checks == ranks * check, f"ranks measured different numbers; this one has {names}"
        sums = self._reduce(own) if own else []
        pairs = zip(sums[0::2], sums[1::2], strict=True)
        return {name: total / weight for name, (total, weight) in zip(names, pairs, strict=True) if weight}


def _wide(value: Scalar) -> Scalar:
    """Long sums in double precision, cut off from the graph."""
    return value.detach().double() if isinstance(value, Tensor) else float(value)


class Tracker:
    """One stage's record: ``FOLDER/metrics.jsonl``, trackers, and the progress on the screen.

    On ranks other than the first it does nothing. Rows hold step, epoch, tokens, loss, learning_rate, grad_norm,
    tokens_per_second, memory_bytes and the stage's own; a number that is not finite stands as null.

    Args:
        folder: the stage's folder; made when missing.
        name: what the screen and the trackers call the run.
        total_steps: optimiser steps, None when not known.
        report_to: of tensorboard, wandb, swanlab.
        main_process: whether this is rank 0.
        resumed_step: the step of the checkpoint that is continued, 0 for a new start. Rows after it are removed, for
            they will be written again.
        resumed_tokens: the tokens seen up to that step.
        console: where the progress goes; None: stderr.

    Raises:
        UserError: a tracker's package is missing, or the disk refuses a row.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        total_steps: int | None,
        report_to: Sequence[str] = (),
        main_process: bool = True,
        *,
        resumed_step: int = 0,
        resumed_tokens: int = 0,
        console: Console | None = None,
    ) -> None:
        self._main, self._total = main_process, total_steps
        self._path = folder / "metrics.jsonl"
        self._sinks: list[Sink] = []
        self._loss = ""
        self._started_at = self._logged_at = time.monotonic()
        self._start_step, self._logged_tokens = resumed_step, resumed_tokens
        self._logged_rate = 0.0
        self._untimed_total = self._untimed_since_log = 0.0
        if not main_process:
            return
        folder.mkdir(parents=True, exist_ok=True)
        keep_rows(self._path, resumed_step)
        self._sinks = [open_tracker(kind, folder, name, resumed_step) for kind in report_to]
        self._line = ProgressLine(name, total_steps, console)

    def step(self, step: int, tokens: int) -> None:
        """After every optimiser step: moves the live line. `tokens`: seen since the stage began, over all ranks."""
        if self._main and self._line.is_live:
            rate = self._rate(tokens) if tokens > self._logged_tokens else self._logged_rate
            self._line.move(step, f"{self._loss}{rate:,.0f} tokens/s  {self._left(step)}".rstrip())

    def log(self, step: int, epoch: float, tokens: int, numbers: Mapping[str, float]) -> None:
        """Each logging step: one row, one line of a log. `numbers`: loss, learning_rate, grad_norm and the stage's."""
        if not self._main:
            return
        row = {"step": step, "epoch": epoch, "tokens": tokens, **numbers}
        self._logged_rate = self._rate(tokens)
        row |= {"tokens_per_second": self._logged_rate, "memory_bytes": memory_bytes()}
        self._logged_at, self._logged_tokens, self._untimed_since_log = time.monotonic(), tokens, 0.0
        written = self._write(step, row)
        if "loss" in numbers:
            self._loss = in_words({"loss": written["loss"]}) + "  "
        if self._line.is_live:
            self.step(step, tokens)
        else:
            self._line.say(step, f"{in_words(written)}  {self._left(step)}".rstrip())

    def evaluated(self, step: int, numbers: Mapping[str, float]) -> None:
        """Held-out numbers (named by the caller, for example eval_loss): a row of their own, and a line that stays."""
        if self._main:
            self._line.say(step, in_words(self._write(step, {"step": step, **numbers})))

    def say(self, step: int, text: str) -> None:
        """A line for the person that looks on, kept on the screen only."""
        if self._main:
            self._line.say(step, text)

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Around evaluating and saving: neither counts in tokens/s nor in the time left."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._untimed_total += time.monotonic() - begin
            self._untimed_since_log += time.monotonic() - begin

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

    def _write(self, step: int, row: Mapping[str, Any]) -> dict[str, Any]:
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean, ensure_ascii=False) + "\n")
        except OSError as error:
            raise disk_error(self._path, error) from error
        finite = {name: float(value) for name, value in clean.items() if name != "step" and value is not None}
        for sink in self._sinks:
            sink.log(step, finite)
        return clean

    def _rate(self, tokens: int) -> float:
        seconds = time.monotonic() - self._logged_at - self._untimed_since_log
        return max(0, tokens - self._logged_tokens) / max(seconds, 1e-9)

    def _left(self, step: int) -> str:
        """The time that is left if the steps go on as they went since this start."""
        done = step - self._start_step
        if self._total is None or done <= 0:
            return ""
        seconds = time.monotonic() - self._started_at - self._untimed_total
        return f"{clock(seconds / done * (self._total - step))} left"


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
        if isinstance(row, dict) and row.get("step", 0) <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def memory_bytes() -> int:
    """The most that the GPU's tensors took so far, or this process's resident memory now."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return int(psutil.Process().memory_info().rss)
