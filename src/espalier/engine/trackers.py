"""The outside trackers: TensorBoard, Weights & Biases, SwanLab, each behind one small class.

Each is imported only when asked for. None ever asks a question on the terminal: without a key in the environment (or
in netrc) the two services record to the run's folder and can be uploaded later by their own commands.
"""

from __future__ import annotations

import hashlib
import netrc
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from espalier.errors import UserError


class Sink(Protocol):
    """Where finite numbers of one step go."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``FOLDER/tensorboard``; steps after `resumed_step` of an earlier start are hidden."""

    def __init__(self, folder: Path, name: str, resumed_step: int) -> None:
        module = _need("torch.utils.tensorboard", "tensorboard", "espalier-llm[tensorboard]")
        purge = {"purge_step": resumed_step + 1} if resumed_step else {}
        self._writer = module.SummaryWriter(log_dir=str(folder / "tensorboard"), **purge)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One Weights & Biases run, continued by the same id when the stage is continued."""

    def __init__(self, folder: Path, name: str, resumed_step: int) -> None:
        # No reports to others than the user's account.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb = _need("wandb", "wandb", "espalier-llm[wandb]")
        host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        known = bool(os.environ.get("WANDB_API_KEY")) or _in_netrc(host)
        mode = os.environ.get("WANDB_MODE") or ("online" if known else "offline")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "espalier"),
            name=name,
            id=_run_id(folder),
            resume="allow" if mode == "online" else None,
            dir=str(folder),
            mode=mode,
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class SwanLab:
    """One SwanLab experiment."""

    def __init__(self, folder: Path, name: str, resumed_step: int) -> None:
        swanlab = _need("swanlab", "swanlab", "espalier-llm[swanlab]")
        known = bool(os.environ.get("SWANLAB_API_KEY"))
        self._swanlab = swanlab
        swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT", "espalier"),
            experiment_name=name,
            logdir=str(folder / "swanlab"),
            mode=os.environ.get("SWANLAB_MODE") or (None if known else "offline"),  # None: its own way online
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._swanlab.log(dict(numbers), step=step)

    def close(self) -> None:
        self._swanlab.finish()


TRACKERS: dict[str, type[TensorBoard] | type[WandB] | type[SwanLab]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "swanlab": SwanLab,
}


_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "swanlab": "swanlab"}


def check_installed(kind: str) -> None:
    """Whether a tracker could be opened. Raises UserError when it is unknown or its package is not installed."""
    if kind not in TRACKERS:
        raise UserError(f"`report_to` is {kind!r}; wanted some of {', '.join(TRACKERS)}.")
    _need(_MODULES[kind], kind, f"espalier-llm[{kind}]")


def open_tracker(kind: str, folder: Path, name: str, resumed_step: int) -> Sink:
    """One of `TRACKERS`. Raises UserError when it is unknown or its package is not installed."""
    check_installed(kind)
    return TRACKERS[kind](folder, name, resumed_step)


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
