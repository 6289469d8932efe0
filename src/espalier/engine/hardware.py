"""The machine: its name, the memory in use, and memory that stays in the process."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from pathlib import Path

import psutil
import torch

GROUP = Path("/sys/fs/cgroup")
"""Where Linux says the bounds of a container."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


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


def free_bytes(device: torch.device) -> int:
    """Memory that a process may still take: of the GPU, or of the machine within the bounds of its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What the allocator keeps for later is free, too.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max": no bound
        bound = int((GROUP / "memory.max").read_text("utf-8"))
        used = int((GROUP / "memory.current").read_text("utf-8"))
        lines = (GROUP / "memory.stat").read_text("utf-8").splitlines()
        given_up = dict(line.split(maxsplit=1) for line in lines)["inactive_file"]  # files that were read
        free = min(free, bound - used + int(given_up))
    return max(0, free)
