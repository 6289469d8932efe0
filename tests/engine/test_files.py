"""Written whole or not at all, and said so."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.engine.files import (
    new_folder,
    read_safetensors,
    replace_folder,
    restore_folder,
    write_json,
    write_safetensors,
    write_text,
)
from espalier.errors import UserError
from tests import processes


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_and_json_are_what_was_written(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "树\n")
    write_text(tmp_path / "a.txt", "木\n")
    write_json(tmp_path / "b.json", {"x": 0.1, "字": [1, None]})
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "木\n"
    assert json.loads((tmp_path / "b.json").read_text(encoding="utf-8")) == {"x": 0.1, "字": [1, None]}
    assert names(tmp_path) == ["a.txt", "b.json"]


def test_json_that_is_none_leaves_the_earlier_file(tmp_path: Path) -> None:
    write_json(tmp_path / "b.json", 1)
    for value in (float("nan"), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "b.json", value)
    assert (tmp_path / "b.json").read_text() == "1\n" and names(tmp_path) == ["b.json"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "new"),
        lambda path: write_json(path, "new"),
        lambda path: write_safetensors(path, {"a": torch.ones(3)}),
    ],
)
def test_a_full_disk_keeps_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    path.write_text("earlier")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(
        UserError, match=r"file: could not be written .* bytes are free on its disk\. Make room"
    ):
        write(path)
    assert path.read_text() == "earlier" and names(tmp_path) == ["file"]


def test_a_folder_that_is_not_there_is_another_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Check that the folder exists"):
        write_text(tmp_path / "nowhere" / "a", "x")


def test_an_interrupt_leaves_no_temporary(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "model") as folder:
        write_text(folder / "a", "x")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_safetensors_come_back_to_the_last_bit(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    tensors = {
        "base": base,
        "tied": base,
        "flat": base.view(-1),
        "row": base[1],
        "turned": base.t(),
        "spread": torch.ones(1, 3).expand(2, 3),
        "half": torch.randn(3).to(torch.bfloat16),
        "scalar": torch.tensor(3.0),
        "none": torch.empty(0, 2),
        "also none": torch.empty(0),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "grad": torch.nn.Parameter(torch.randn(2)),
        "nan": torch.tensor([float("nan"), float("inf")]),
    }
    write_safetensors(tmp_path / "t.safetensors", tensors, {"by": "a test"})
    back = read_safetensors(tmp_path / "t.safetensors")
    assert list(back) != [] and set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        assert torch.equal(back[name].nan_to_num(7), tensor.detach().nan_to_num(7)), name
    assert back["tied"].data_ptr() == back["base"].data_ptr(), "tied tensors are written once"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "t", {"a": torch.ones(100)})
    whole = (tmp_path / "t").read_bytes()
    for content in (whole[:-9], b"", b"\xff" * 20):
        (tmp_path / "t").write_bytes(content)
        with pytest.raises(UserError, match="not a readable safetensors file"):
            read_safetensors(tmp_path / "t")
    with pytest.raises(UserError, match="not a readable"):
        read_safetensors(tmp_path / "nothing")


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with new_folder(tmp_path / "model") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / word).write_text(word)
    assert names(tmp_path) == ["model"] and names(tmp_path / "model" / "deep") == ["second"]


def test_a_failed_rename_brings_the_earlier_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, temporary = tmp_path / "model", tmp_path / "new"
    for folder in (final, temporary):
        folder.mkdir()
        (folder / folder.name).write_text("x")
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda self, to: full_disk() if self == temporary else rename(self, to)
    )
    with pytest.raises(UserError, match="model: could not be written"):
        replace_folder(temporary, final)
    assert names(tmp_path) == ["model"] and names(final) == ["model"]


def test_a_kill_between_two_renames_is_mended(tmp_path: Path) -> None:
    old = tmp_path / ".model.old"
    old.mkdir()
    (old / "a").write_text("earlier")
    restore_folder(tmp_path / "model")
    assert names(tmp_path) == ["model"]
    old.mkdir()
    restore_folder(tmp_path / "model")
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["a"]


@pytest.mark.slow
def test_a_disk_that_really_refuses(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the write fails in its middle, in C and in Rust alike."""
    code = f"""
import resource, torch
from pathlib import Path
from espalier.engine.files import new_folder, write_safetensors, write_text
from espalier.errors import UserError
folder = Path({str(tmp_path)!r})
write_text(folder / "text", "earlier")
with new_folder(folder / "model") as model:
    write_safetensors(model / "weights", {{"w": torch.ones(10)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
def save():
    with new_folder(folder / "model") as model:
        write_safetensors(model / "weights", {{"w": torch.zeros(1_000_000)}})
for attempt in (save, lambda: write_text(folder / "text", "x" * 100_000)):
    try:
        attempt()
    except UserError as error:
        print(error)
"""
    done = processes.run([sys.executable, "-c", code], capture_output=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/model: could not be written") and "Make room" in first
    assert second.startswith(f"{tmp_path}/text: could not be written") and "Make room" in second
    assert names(tmp_path) == ["model", "text"] and (tmp_path / "text").read_text() == "earlier"
    assert torch.equal(read_safetensors(tmp_path / "model" / "weights")["w"], torch.ones(10))
