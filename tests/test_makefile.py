"""`make` takes whichever Python is new enough, by any of its names, and says what is wanted where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("make", "sh", "touch", "getconf", "expr", "grep")


def make(folder: Path, pythons: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """make with nothing on its path but a few tools and these programs, each a line of shell."""
    tools = folder / "bin"
    tools.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"no {name} on this machine")
        (tools / name).symlink_to(found)
    for name, line in pythons.items():
        (tools / name).write_text(f"#!{tools / 'sh'}\n{line}\n", "utf-8")
        (tools / name).chmod(0o755)
    target = f"VENV={folder / 'venv'}"
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    return subprocess.run(
        ["make", "-C", str(ROOT), target, f"{folder / 'venv'}/.installed-torch", *words],
        env={**environment, "PATH": str(tools)},
        capture_output=True,
        text=True,
    )


GOOD, OLD = f'exec {sys.executable} "$@"', "exit 1"


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3": GOOD}, "python3"),
        ({"python": GOOD}, "python"),
        ({"python3.11": OLD, "python3.13": GOOD, "python3": OLD}, "python3.13"),
        ({"python3.11": GOOD, "python3": GOOD}, "python3.11"),
    ],
)
def test_any_python_that_is_new_enough(pythons: dict[str, str], taken: str, tmp_path: Path) -> None:
    done = make(tmp_path, pythons, "-n")
    assert done.returncode == 0 and f"\n{taken} -m venv" in "\n" + done.stdout, done.stdout + done.stderr


def test_without_one_make_says_what_is_wanted(tmp_path: Path) -> None:
    done = make(tmp_path, {"python3": 'case "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac'})
    assert done.returncode == 2
    assert (
        "Python 3.11 or newer" in done.stderr and "Python 3.9.2" in done.stderr and "PYTHON=" in done.stderr
    )
    assert not (tmp_path / "venv").exists()


def test_one_that_is_named_wins(tmp_path: Path) -> None:
    done = make(tmp_path, {"python3": GOOD}, "-n", "PYTHON=mine")
    assert "\nmine -m venv" in "\n" + done.stdout
