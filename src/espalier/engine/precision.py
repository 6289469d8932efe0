"""Which type the matrix products of a run have: decided once, from what the processor has.

The first rank decides for all, and a run that goes on keeps what it began with (`kept_precision`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import torch

from espalier.disk.reading import object_or_nothing
from espalier.errors import UserError
from espalier.processor import Precision as Precision
from espalier.processor import best_precision, has_bf16_instructions

OVERRIDE = "ESPALIER_PRECISION"
"""Environment variable: what `precision: auto` stands for, where the answer of this module is not wanted."""


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """What `precision` means on a device.

    Args:
        wanted: fp32, bf16, fp16, or auto: bf16 where the device has instructions for it, fp16 on a GPU without, else
            fp32; the same answer in every call of a process.

    Raises:
        UserError: fp16 was asked for on a CPU, or the environment variable says something else than a precision.
    """
    if wanted == "auto":
        return _override() or best_precision(device.type)
    if wanted == "fp16" and device.type == "cpu":
        raise UserError(
            "precision: fp16 needs a GPU. On a CPU set precision: bf16 or fp32, or auto for the faster one."
        )
    assert wanted in get_args(Precision), wanted
    return wanted  # type: ignore[return-value]


def _override() -> Precision | None:
    override = os.environ.get(OVERRIDE)
    if override is None or override in get_args(Precision):
        return override  # type: ignore[return-value]
    raise UserError(f"{OVERRIDE} is {override!r}. Set it to fp32, bf16 or fp16, or unset it.")


def is_emulated(device: torch.device) -> bool:
    """Whether bf16 works on this device but has no instructions of its own."""
    return device.type == "cpu" and not has_bf16_instructions()


def kept_precision(folder: Path) -> Precision | None:
    """The precision that a run in this folder has computed with, by its summary; None where there is no run."""
    precision = object_or_nothing(folder / "summary.json").get("precision")
    return precision if precision in get_args(Precision) else None


def agreed_precision(precision: Precision, *, cpu: bool) -> Precision:
    """What the first rank has decided; every rank calls it. With one process it is `precision` itself.

    Args:
        cpu: whether the ranks compute on CPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return precision
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from espalier.engine.group import join

    join(cpu=cpu)
    PartialState(cpu=cpu)
    agreed = [precision]
    broadcast_object_list(agreed)
    return agreed[0]
