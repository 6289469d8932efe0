"""Which type the matrix products of a run have: decided once, from what the processor has.

A processor is asked for its bf16 instructions, and one timing confirms them: it only ever takes bf16 away, where the
instructions are there but the library does not use them (an environment variable, an emulator). Its bound lies far from
both truths, so that a busy machine cannot flip it. The first rank decides for all, and a run that goes on keeps what it
began with (`kept_precision`).
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch

from espalier.disk.reading import object_or_nothing
from espalier.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]

OVERRIDE = "ESPALIER_PRECISION"
"""Environment variable: what `precision: auto` stands for, where the answer of this module is not wanted."""

_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of oneDNN's ONEDNN_MAX_CPU_ISA that leave no bf16 instructions to use."""

SLOWER = 1.5
"""bf16 is not taken where its product takes so much longer than that of float32. With AVX512-BF16 it takes 0.47 of the
time and with AMX 0.11; without instructions 10 to 300 times as long."""


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


@cache
def best_precision(device_type: str) -> Precision:
    """The answer to "auto" for a kind of device (cuda, cpu, ...), found out once a process."""
    if device_type == "cuda":
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    if device_type != "cpu" or not has_bf16_instructions():
        return "fp32"
    return "fp32" if _is_slow() else "bf16"


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bf16 numbers by itself (AVX512-BF16, AMX, ARM's), and oneDNN may use that."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    if limit.upper() in _WITHOUT_BF16:
        return False
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.12 and later
        able = torch.cpu.get_capabilities()
        return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "sve_bf16", "bf16"))
    return torch.cpu._is_avx512_bf16_supported()


def is_emulated(device: torch.device) -> bool:
    """Whether bf16 works on this device but has no instructions of its own."""
    return device.type == "cpu" and not has_bf16_instructions()


def _is_slow() -> bool:
    """Whether bf16 lost every one of three rounds by `SLOWER`; noise would have to hit one side in all of them."""
    return all(_seconds(torch.bfloat16) > SLOWER * _seconds(torch.float32) for _ in range(3))


def _seconds(dtype: torch.dtype, size: int = 256) -> float:
    """Best time of a small matrix product on one thread; without instructions one of 2048 takes a minute."""
    a = torch.ones(size, size, dtype=dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other on a busy machine
    try:
        _ = a @ a
        times = []
        for _ in range(7):
            start = time.perf_counter()
            _ = a @ a
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times)


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

    PartialState(cpu=cpu)
    agreed = [precision]
    broadcast_object_list(agreed)
    return agreed[0]
