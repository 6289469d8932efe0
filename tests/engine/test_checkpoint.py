"""What was saved is there, whole and to the last bit, whatever stopped the saving."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espalier.engine import files
from espalier.engine.checkpoint import (
    clear_checkpoints,
    load_checkpoint,
    newest_whole,
    rng_from_tensors,
    rng_to_tensors,
    save_checkpoint,
)
from espalier.errors import UserError
from tests import processes


def put(folder: Path, step: int, keep: int | None = None, size: int = 3) -> Path:
    tensors = {"model": {"w": torch.full((size,), float(step))}, "rng-0": rng_to_tensors()}
    return save_checkpoint(folder, step, tensors, {"step": step, "lr": 0.1 + 0.2, "place": [1, None]}, keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_generator_continues(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [
            torch.rand(3).tolist(),
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.randn(),
        ]

    for seed in (0, 1):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        for _ in range(seed):  # an odd number of normal draws leaves a second one waiting in each generator
            draw()
        files.write_safetensors(tmp_path / "rng", rng_to_tensors())
        first = [draw(), draw()]
        rng_from_tensors(files.read_safetensors(tmp_path / "rng"))
        assert [draw(), draw()] == first


def test_a_checkpoint_is_tensors_and_json_and_no_pickle(tmp_path: Path) -> None:
    path = put(tmp_path, 7)
    assert path == tmp_path / "step-7"
    assert names(path) == ["model.safetensors", "rng-0.safetensors", "state.json"]
    tensors, state = load_checkpoint(path)
    assert torch.equal(tensors["model"]["w"], torch.full((3,), 7.0))
    assert state == {"step": 7, "lr": 0.1 + 0.2, "place": [1, None]}


def test_the_oldest_go_and_the_newest_is_by_number(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "nowhere")[0] is None
    for step in (8, 9, 10):
        put(tmp_path, step, keep=4)
    assert names(tmp_path) == ["step-10", "step-8", "step-9"]
    put(tmp_path, 11, keep=2)
    assert names(tmp_path) == ["step-10", "step-11"]
    assert newest_whole(tmp_path)[0] == tmp_path / "step-11"
    put(tmp_path, 11, keep=1)
    assert names(tmp_path) == ["step-11"]
    put(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["step-3"], "what was just written is never the oldest"
    (tmp_path / ".step-2.elsewhere.1.tmp").mkdir()  # of a removal that was killed
    clear_checkpoints(tmp_path)
    assert [*tmp_path.iterdir()] == [] and newest_whole(tmp_path)[0] is None


def test_temporaries_and_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        put(tmp_path, step)
    (tmp_path / "step-5" / "state.json").unlink()
    (tmp_path / "step-4" / "model.safetensors").write_bytes(b"short")
    (tmp_path / "step-3" / "state.json").write_text('{"format"')
    (tmp_path / ".step-9.1.tmp").mkdir()
    (tmp_path / "step-x").mkdir()
    assert newest_whole(tmp_path)[0] == tmp_path / "step-2"
    for step, problem in (
        (5, "missing"),
        (4, "model.safetensors has another size"),
        (3, "damaged"),
        (8, "missing"),
    ):
        with pytest.raises(UserError, match=f"not a whole checkpoint .*{problem}.*beside it"):
            load_checkpoint(tmp_path / f"step-{step}")
    put(tmp_path, 6)
    assert not (tmp_path / ".step-9.1.tmp").exists()
    (tmp_path / "step-6").rename(tmp_path / ".step-6.old")
    assert newest_whole(tmp_path)[0] == tmp_path / "step-6", "a kill between the two renames is mended"


@pytest.mark.parametrize("survives", range(6))
def test_a_full_disk_at_any_moment_keeps_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    put(tmp_path, 1)
    real, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > survives:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(
        UserError, match=r"step-2: could not be written .*free on its disk.*save_total_limit.*untouched"
    ):
        put(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-1"] and newest_whole(tmp_path)[0] == tmp_path / "step-1"
    monkeypatch.undo()
    put(tmp_path, 2, keep=1)
    assert newest_whole(tmp_path)[0] == tmp_path / "step-2"


SAVE_FOREVER = """
import sys
from pathlib import Path
import torch
from espalier.engine.checkpoint import save_checkpoint
for step in range(int(sys.argv[2]), 10**6):
    parts = {name: {"w": torch.full((200_000,), float(step))} for name in ("model", "optimizer", "reference")}
    save_checkpoint(Path(sys.argv[1]), step, parts, {"step": step}, 2)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_sigkill_in_the_middle_of_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    reached, caught, attempt = 0, 0, 0
    while caught < 2 and attempt < 8:
        attempt += 1
        command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path), str(reached + 1)]
        with processes.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            reached = int(process.stdout.readline())
            time.sleep(0.003 * attempt)
            process.kill()
            reached = max([reached, *map(int, process.stdout.read().split())])
        caught += any(path.name.endswith(".tmp") for path in tmp_path.iterdir())
        path = newest_whole(tmp_path)[0]
        assert path is not None
        tensors, state = load_checkpoint(path)
        assert state["step"] >= reached, "what was said to be saved is there"
        assert all(
            torch.equal(part["w"], torch.full((200_000,), float(state["step"]))) for part in tensors.values()
        )
        reached = state["step"]
    assert caught, "no kill fell into a save, so nothing was tested"
