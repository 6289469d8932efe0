"""The state of one run of one stage, which the wiring hands around."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from espalier.config.option_set import OptionSet
from espalier.config.options import Options, RunOptions
from espalier.data.steps.feed import Feed
from espalier.engine.shares import Shares
from espalier.engine.step import Progress
from espalier.runs.provenance import MadeFrom
from espalier.screen import Screen
from espalier.stages.parts import Live, Parts
from espalier.stages.setup import Setup

T = TypeVar("T", bound=Options)


@dataclass
class Start:
    """What a run knows before anything is loaded.

    Attributes:
        stage: its kind.
        options: an instance of each option class, by class.
        folder: of the run's results.
        made_from: everything that the result depends on.
        checkpoint: the folder that the run goes on from; None: it begins.
        notes: lines that were shown to the user; kept in the summary.
        started: seconds since the epoch.
    """

    stage: str
    options: OptionSet
    folder: Path
    made_from: MadeFrom
    accelerator: Accelerator
    notes: list[str]
    checkpoint: Path | None = None
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.console = Screen(stderr=True, quiet=not self.is_main)

    def option(self, kind: type[T]) -> T:
        return self.options[kind]

    @property
    def name(self) -> str:
        return self.option(RunOptions).name or self.stage

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def say(self, text: str) -> None:
        """Show a line and keep it."""
        self.notes.append(text)
        self.console.say(f"{self.name}: {text}", "dim")

    def warn(self, step: int, text: str) -> None:
        """Show a line that must not be missed; a `Watcher` keeps it."""
        self.console.say(f"{self.name}: step {step}: {text}", "bold yellow")


@dataclass
class Running:
    """A run whose models and data are loaded.

    Attributes:
        start: what was known before.
        setup, parts: what the stage was built from, and what it gave.
        live, optimizer: as the strategy has prepared them.
        shares: what each rank holds of them.
        weights: how many the stage's model has.
        held_out: the number by which the stage is judged, before and after, for the summary.
        saved: folder -> file -> [bytes, checksum] of the weights of each model that is written.
        saved_types: folder -> the type of most of its numbers.
    """

    start: Start
    setup: Setup
    parts: Parts
    live: Live
    optimizer: torch.optim.Optimizer
    feed: Feed
    shares: Shares
    weights: int
    progress: Progress = field(default_factory=Progress)
    held_out: dict[str, Any] = field(default_factory=dict)
    saved: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    saved_types: dict[str, str] = field(default_factory=dict)
