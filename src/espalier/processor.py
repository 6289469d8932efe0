"""Which 16-bit floats a device multiplies by itself.

A processor is asked for its bf16 instructions, and one timing confirms them: it only ever takes bf16 away, where the
instructions are there but the library does not use them (an environment variable, an emulator). Its bound lies far from
both truths, so that a busy machine cannot flip it.
"""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of oneDNN's ONEDNN_MAX_CPU_ISA that leave no bf16 instructions to use."""

SLOWER = 1.5
"""bf16 is not taken where its product takes so much longer than that of float32. With AVX512-BF16 it takes 0.47 of the
time and with AMX 0.11; without instructions 10 to 300 times as long."""


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
