"""Temporaries carry their process; what the dead have left goes away, and nothing else does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from espalier.disk import temporary
from espalier.disk.temporary import remove_left, temporary_folder, temporary_name
from espalier.disk.writing import new_folder


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that is no more."""
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    return gone.pid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_what_the_dead_have_left_goes(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = temporary._host()
    living = [f".out.{host}.{os.getppid()}.tmp", f".out.elsewhere.{dead}.tmp", ".out.tmp", "out", ".other"]
    left = [f".out.{host}.{dead}.tmp", f".out.{dead}.tmp"]
    for name in [*living, *left]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("x")
    (tmp_path / f".file.{host}.{dead}.tmp").write_text("x")
    remove_left(tmp_path, "out")
    assert names(tmp_path) == sorted([*living, f".file.{host}.{dead}.tmp"]), "only of that name"
    remove_left(tmp_path)
    assert names(tmp_path) == sorted(living)
    monkeypatch.setattr(temporary, "_FOREIGN", -1.0)
    remove_left(tmp_path)
    assert f".out.elsewhere.{dead}.tmp" not in names(tmp_path), "another machine's, long silent"
    remove_left(tmp_path, of_anyone=True)
    assert names(tmp_path) == sorted([".out.tmp", "out", ".other"])
    remove_left(tmp_path / "nowhere")


def test_a_new_folder_takes_away_what_a_killed_writer_has_left(tmp_path: Path, dead: int) -> None:
    child = os.fork()
    if not child:
        with new_folder(tmp_path / "out") as folder:
            (folder / "weights").write_text("half")
            os._exit(9)
    os.waitpid(child, 0)
    assert names(tmp_path) == [f".out.{temporary._host()}.{child}.tmp"]
    with new_folder(tmp_path / "out") as folder:
        (folder / "weights").write_text("whole")
    assert names(tmp_path) == ["out"]


def test_names_of_machines_with_dots_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: int
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-1.example.org")
    monkeypatch.setattr(os, "getpid", lambda: dead)
    temporary_name(tmp_path / "model.safetensors").write_text("x")
    remove_left(tmp_path)
    assert names(tmp_path) == []


def test_temporary_folders_of_the_dead_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: int) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    host = temporary._host()
    for name in (f"espalier-{host}-{dead}-abc", f"espalier-{host}-{os.getppid()}-abc", "espalier-mine"):
        (tmp_path / name).mkdir()
    with temporary_folder() as folder:
        assert Path(folder).name.startswith(f"espalier-{host}-{os.getpid()}-")
        assert f"espalier-{host}-{dead}-abc" not in names(tmp_path)
    assert names(tmp_path) == sorted([f"espalier-{host}-{os.getppid()}-abc", "espalier-mine"])
