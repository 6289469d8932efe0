"""The outside trackers: TensorBoard, Weights & Biases, SwanLab, trackio, each behind one small class.

Each is imported only when asked for. None ever asks a question on the terminal: without a key in the environment (or
in netrc) the two services record to the run's folder and can be uploaded later by their own commands.
"""

from __future__ import annotations

import hashlib
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from espalier.errors import UserError


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        folder: of the run.
        name: what the trackers call it.
        project: theirs; None: what their environment variable says, else espalier.
        options: the run's options, which trackers keep as hyper-parameters.
        resumed_step: the step of the checkpoint that is continued, 0 for a new start.
    """

    folder: Path
    name: str
    project: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    resumed_step: int = 0

    def project_of(self, variable: str) -> str:
        """The project's name for a tracker with that environment variable."""
        return self.project or os.environ.get(variable) or "espalier"


class Sink(Protocol):
    """Where finite numbers of one step go."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``FOLDER/tensorboard``; steps after `resumed_step` of an earlier start are hidden."""

    def __init__(self, run: TrackedRun) -> None:
        module = _need("torch.utils.tensorboard", "tensorboard", "espalier-llm[tensorboard]")
        purge = {"purge_step": run.resumed_step + 1} if run.resumed_step else {}
        self._writer = module.SummaryWriter(log_dir=str(run.folder / "tensorboard"), **purge)
        if run.options and not run.resumed_step:
            rows = "\n".join(f"| {key} | `{value}` |" for key, value in run.options.items())
            self._writer.add_text("options", f"| key | value |\n|---|---|\n{rows}", 0)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One Weights & Biases run, continued by the same id when the stage is continued."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault(
            "WANDB_ERROR_REPORTING", "false"
        )  # no reports to others than the user's account
        wandb = _need("wandb", "wandb", "espalier-llm[wandb]")
        host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        known = bool(os.environ.get("WANDB_API_KEY")) or _in_netrc(host)
        mode = os.environ.get("WANDB_MODE") or ("online" if known else "offline")
        self._run: Any = wandb.init(
            project=run.project_of("WANDB_PROJECT"),
            name=run.name,
            config=dict(run.options),
            id=_run_id(run.folder),
            resume="allow" if mode == "online" else None,
            dir=str(run.folder),
            mode=mode,
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class SwanLab:
    """One SwanLab experiment."""

    def __init__(self, run: TrackedRun) -> None:
        swanlab = _need("swanlab", "swanlab", "espalier-llm[swanlab]")
        known = bool(os.environ.get("SWANLAB_API_KEY"))
        self._swanlab = swanlab
        swanlab.init(
            project=run.project_of("SWANLAB_PROJECT"),
            experiment_name=run.name,
            config=dict(run.options),
            logdir=str(run.folder / "swanlab"),
            mode=os.environ.get("SWANLAB_MODE") or (None if known else "offline"),  # None: its own way online
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._swanlab.log(dict(numbers), step=step)

    def close(self) -> None:
        self._swanlab.finish()


class Trackio:
    """One trackio run, on this machine's disk unless its own environment variables name a Space."""

    def __init__(self, run: TrackedRun) -> None:
        self._run: Any = _need("trackio", "trackio", "espalier-llm[trackio]").init(
            project=run.project_of("TRACKIO_PROJECT"),
            name=f"{run.name}-{_run_id(run.folder)[:6]}",  # it continues a run by its name
            config=dict(run.options),
            resume="allow",
            embed=False,
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[TrackedRun], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "swanlab": SwanLab,
    "trackio": Trackio,
}


_MODULES = {"tensorboard": "torch.utils.tensorboard"}


def check_installed(kind: str) -> None:
    """Whether a tracker could be opened. Raises UserError when it is unknown or its package is not installed."""
    if kind not in TRACKERS:
        raise UserError(f"`report_to` is {kind!r}; wanted some of {', '.join(TRACKERS)}.")
    _need(_MODULES.get(kind, kind), kind, f"espalier-llm[{kind}]")


def open_trackers(kinds: Sequence[str], run: TrackedRun) -> list[Sink]:
    """Those of `TRACKERS` that are named.

    Raises:
        UserError: one is unknown, or its package is not installed.
    """
    for kind in kinds:
        check_installed(kind)
    return [TRACKERS[kind](run) for kind in kinds]


def _need(module: str, kind: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"`report_to: {kind}` needs a package that is not installed ({error}). Install it with "
            f"`pip install '{extra}'`, or leave {kind} out of report_to."
        ) from error


def _in_netrc(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(folder: Path) -> str:
    """The same for the same folder, so that a continued stage is one curve."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
