"""From one process to several: this run again under torchrun, once for each device."""

from __future__ import annotations

import os
import sys

import torch

from espalier.errors import UserError


def rank() -> int:
    """Which of the processes of this run this one is, as its launcher says; known before anything is set up."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes this run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_wanted(strategy: str, num_processes: int) -> int:
    """How many processes a run should have; 1 when it is already one of several.

    Args:
        strategy: "auto" takes every GPU of this machine; "single" is always one.
        num_processes: the user's number; 0 leaves it to the strategy.
    """
    if "LOCAL_RANK" in os.environ:
        return 1
    if strategy == "single":
        if num_processes > 1:
            raise UserError(f"strategy: single is one process, but num_processes is {num_processes}.")
        return 1
    if num_processes:
        return num_processes
    return max(1, torch.cuda.device_count())


def relaunch(arguments: list[str], processes: int) -> int:
    """Run ``espalier ARGUMENTS`` in so many processes on this machine; returns the exit code.

    Several machines: start `torchrun` yourself with ``-m espalier.cli`` (docs/scaling.md).
    """
    import subprocess

    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or _threads(processes)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, "-m", "espalier.cli", *arguments], env=environment, check=False
    ).returncode


def _threads(processes: int) -> str:
    return str(max(1, (os.cpu_count() or 1) // processes))
