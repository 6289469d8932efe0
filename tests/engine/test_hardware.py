"""A machine is named without its host, and keeps the memory that it frees."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from espalier.engine import hardware
from espalier.engine.hardware import device_name, free_bytes

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="a switch of glibc")
def test_freed_memory_stays_in_the_process() -> None:
    """Without the switch a freed block of 64 MiB goes back at once, and every later one is made of new pages."""
    code = (
        "import ctypes, resource, sys\n"
        "from espalier.engine.hardware import keep_freed_memory\n"
        "assert sys.argv[1] == 'no' or keep_freed_memory()\n"
        "libc, size = ctypes.CDLL('libc.so.6'), ctypes.c_size_t(2**26)\n"
        "libc.malloc.restype = ctypes.c_void_p\n"
        "def use():\n"
        "    block = ctypes.c_void_p(libc.malloc(size))\n"
        "    libc.memset(block, 1, size)\n"
        "    libc.free(block)\n"
        "use()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): use()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = {
        side: int(
            subprocess.run(
                [sys.executable, "-c", code, side], capture_output=True, text=True, check=True
            ).stdout
        )
        for side in ("yes", "no")
    }
    assert faults["yes"] * 10 < faults["no"]


def test_a_machine_is_named_by_what_it_is() -> None:
    name = device_name(CPU)
    assert name.endswith(" cores") and socket.gethostname() not in name


@pytest.mark.slow
def test_memory_in_use_grows_with_what_is_held() -> None:
    """In a process of its own: here the memory of earlier tests may be used again."""
    code = (
        "import torch; from espalier.engine.hardware import memory_bytes\n"
        "cpu = torch.device('cpu'); before = memory_bytes(cpu)\n"
        "held = torch.ones(2**24); print(memory_bytes(cpu) - before)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) > 2**25


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    assert 0 < free_bytes(CPU) <= psutil.virtual_memory().total


def test_a_container_bounds_free_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "memory.max": "1000000",
        "memory.current": "400000",
        "memory.stat": "anon 9\ninactive_file 50000\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.setattr(hardware, "GROUP", tmp_path)
    assert free_bytes(CPU) == 650_000
    (tmp_path / "memory.max").write_text("max\n", "utf-8")
    assert free_bytes(CPU) > 10**7, "no bound"
