"""What this machine is good at: precision by measuring, memory that stays in the process, its name."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
import time
from pathlib import Path

import psutil
import torch

GAIN = 1.3
"""bf16 must be so much faster than fp32 before its rounding is worth it."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def choose_precision(wanted: str, device: torch.device) -> str:
    """ "no" (float32), "bf16" or "fp16", as accelerate names them.

    "auto" is bf16 on a GPU that has it, and on a CPU only where a bf16 matrix product really is faster: with
    AMX it is about 9 times as fast as float32, without bf16 instructions it can be 100 times slower.
    """
    if wanted in ("bf16", "fp16"):
        return wanted
    if wanted != "auto":
        return "no"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if device.type != "cpu":
        return "no"
    return "bf16" if _matmul_seconds(torch.bfloat16) * GAIN < _matmul_seconds(torch.float32) else "no"


def _matmul_seconds(dtype: torch.dtype, size: int = 256) -> float:
    """Best time of a small matrix product; small, for without bf16 instructions one of 2048 takes a minute."""
    a = torch.ones(size, size, dtype=dtype)
    _ = a @ a
    times = []
    for _ in range(7):
        start = time.perf_counter()
        _ = a @ a
        times.append(time.perf_counter() - start)
    return min(times)


def keep_freed_memory() -> bool:
    """Let malloc keep what the process frees, instead of giving it back and asking again at every step.

    It saves the kernel's work on new pages: three of four page faults and a twelfth of the CPU time of SFT with a
    vocabulary of 32k (benchmarks/malloc.py). Blocks below 32 MiB glibc learns to keep by itself, so that small
    models gain nothing. Only glibc has the switch; returns whether it was set.
    """
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28))
        return all(libc.mallopt(name, value) == 1 for name, value in settings)
    return False


def device_name(device: torch.device) -> str:
    """Such as "NVIDIA H100 80GB HBM3" or "AMD EPYC, 2 cores"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {psutil.cpu_count(logical=True)} cores"


def memory_bytes(device: torch.device) -> int:
    """Memory in use: the peak of the tensors on a GPU, the resident set of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss
