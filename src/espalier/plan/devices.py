"""The table of devices, and this machine as one of them."""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
import yaml

from espalier.engine.hardware import device_name, free_bytes
from espalier.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """What a device has.

    Attributes:
        name: as it is asked for.
        memory: bytes that a process can have of it.
        half, single: FLOP a second of matrix products in 16 and in 32 bits.
        bandwidth: bytes a second of its memory.
        link: bytes a second to a neighbour, one way.
        source: where the numbers are from.
        cpu: whether it is the processor of a machine.
    """

    name: str
    memory: int
    half: float
    single: float
    bandwidth: float
    link: float
    source: str
    cpu: bool = False

    def peak(self, bits: int) -> float:
        """FLOP a second of products in so many bits."""
        return self.half if bits == 16 else self.single


def device(name: str) -> Device:
    """A device of the table.

    Raises:
        UserError: it is not in the table.
    """
    table: dict[str, dict[str, Any]] = yaml.safe_load(
        (files("espalier.plan") / "devices.yaml").read_text("utf-8")
    )
    known = {plain(key): key for key in table}
    key = known.get(plain(name))
    if key is None:
        near = difflib.get_close_matches(plain(name), known, n=1, cutoff=0.3)
        hint = f" Did you mean {known[near[0]]}?" if near else ""
        raise UserError(f"--gpu {name}: not in the table, which has {', '.join(table)}.{hint}")
    row = table[key]
    return Device(
        key,
        int(row["memory"] * GIB * (1 - OWN)),
        row["half"] * 1e12,
        row["single"] * 1e12,
        row["bandwidth"] * 1e9,
        row["link"] * 1e9,
        row["source"],
    )


OWN = 0.0137
"""The share of its memory that a GPU keeps for itself (a V100 of 16 GiB shows 16,160 MiB)."""


def plain(name: str) -> str:
    """A name without what people write in different ways.

    >>> plain("A100 80GB"), plain("rtx-4090")
    ('a10080', 'rtx4090')
    """
    text = name.lower().removesuffix("gb").removesuffix("g")
    return "".join(sign for sign in text if sign.isalnum())


def this_machine() -> Device:
    """The first GPU, or the processor with what is free of its memory; its speed is measured."""
    gpu = torch.cuda.is_available()
    place = torch.device("cuda" if gpu else "cpu")
    name = device_name(place)
    memory = torch.cuda.get_device_properties(0).total_memory if gpu else free_bytes(place)
    single, half = (_measured(place, kind) for kind in (torch.float32, torch.bfloat16))
    return Device(name, memory, half, single, _bandwidth(place), 12e9, "measured here", cpu=not gpu)


def _measured(place: torch.device, kind: torch.dtype, size: int = 1024) -> float:
    """FLOP a second of a matrix product, the best of a few."""
    a = torch.ones(size, size, dtype=kind, device=place)
    return 2 * size**3 / _seconds(lambda: a @ a, place)


def _bandwidth(place: torch.device) -> float:
    a = torch.ones(16 * 2**20, device=place)
    return 2 * a.nbytes / _seconds(lambda: a.clone(), place)


def _seconds(call: Any, place: torch.device) -> float:
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        call()
        if place.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
