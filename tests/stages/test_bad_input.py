"""Mistakes and misfortunes that reach a stage: one message, and nothing that was there before is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.engine import checkpoint, files
from espalier.errors import UserError
from espalier.models import load
from espalier.runs.train import run_stage
from tests.stages.conftest import far, options_of, run, weights

Make = Callable[..., dict[str, Any]]


def test_a_folder_without_weights_says_what_it_has(options: Make, world: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(world / "base", bare)
    (bare / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"bare: .*weights") as refused:
        run(options("sft", model_name_or_path=str(bare)))
    assert "safetensors" in str(refused.value)


def test_a_plain_model_is_no_reward_model(options: Make, world: Path) -> None:
    with pytest.raises(UserError, match=r"base: is no reward model .*Train one with `stage: reward`"):
        run(options("ppo", reward_model=str(world / "base")))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_disk_that_fills_up_in_the_middle_of_a_save_keeps_the_checkpoint_before(
    stage: str, options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = options(stage, name="whole", max_steps=6)
    run(whole)
    full = options(stage, name="full", max_steps=6, save_steps=2, save_total_limit=1)
    real, save = os.fsync, checkpoint.save_checkpoint
    saves = written = 0

    def fsync(descriptor: int) -> None:
        nonlocal written
        written += saves == 2
        if written > 2:  # the second checkpoint breaks off after two files, and the disk stays full
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    def counted(*args: Any) -> Path:
        nonlocal saves
        saves += 1
        return save(*args)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(checkpoint, "save_checkpoint", counted)
    with pytest.raises(UserError, match=r"step-4: could not be written .*free on its disk"):
        run(full)
    monkeypatch.undo()
    folder = Path(full["output_dir"]) / "full"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-2"]
    assert json.loads((folder / "summary.json").read_text("utf-8"))["status"] == "running", "no room for it"
    assert run(full)["status"] == "done"
    assert far(weights(whole), weights(full)) == 0.0


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_model_is_saved_keeps_the_last_checkpoint(
    options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options("sft", save_steps=2)
    real = files.new_folder

    def refuse(path: Path) -> Any:
        if path.name == "model":
            raise UserError(f"{path}: could not be written: no space left. Free some on its disk.")
        return real(path)

    monkeypatch.setattr(files, "new_folder", refuse)
    with pytest.raises(UserError, match="no space left"):
        run(chosen)
    monkeypatch.undo()
    folder = Path(chosen["output_dir"]) / "sft"
    assert (folder / "checkpoints" / "step-2").is_dir() and not (folder / "model").exists()
    assert run(chosen)["status"] == "done" and (folder / "model").is_dir()


@pytest.mark.slow
def test_a_checkpoint_of_other_options_or_other_data_is_refused(
    options: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, world: Path
) -> None:
    data = tmp_path / "data.jsonl"
    shutil.copy(world / "sft_train.jsonl", data)
    chosen = options("sft", dataset=[str(data)], save_steps=1, max_steps=3)
    monkeypatch.setattr(
        "espalier.runs.train.finish", lambda running: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        run(chosen)
    monkeypatch.undo()
    with pytest.raises(
        UserError,
        match=r"(?s)step-2: this checkpoint was made from other options.*learning_rate: 0.001 -> 0.0009.*resume=false",
    ):
        run({**chosen, "learning_rate": 9e-4})
    lines = data.read_text("utf-8").splitlines()
    data.write_text("\n".join(lines[:-5]) + "\n", "utf-8")
    with pytest.raises(UserError, match=rf"(?s)step-2: .*dataset: the content of {data} has changed"):
        run(chosen)
    assert run({**chosen, "resume": False})["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "key"), [("ppo", "reward_model"), ("grpo", "reward_model"), ("dpo", "ref_model")]
)
def test_a_model_of_another_tokenizer_is_refused(
    stage: str, key: str, options: Make, world: Path, tmp_path: Path
) -> None:
    """It would read the policy's ids as other words, and nothing in the numbers would tell."""
    other = tmp_path / "other"
    shutil.copytree(world / "judge", other)
    texts = [json.loads(line)["text"] for line in (world / "pretrain.jsonl").read_text("utf-8").splitlines()]
    load.train_tokenizer([text[::-1] for text in texts], 400).save_pretrained(other)
    chosen = options(stage, max_steps=1)
    chosen.pop("reward_function", None)
    with pytest.raises(UserError, match=r"other: has another tokenizer than the model that is trained"):
        run(chosen | {key: str(other)})
    run(chosen | {key: str(world / "judge")})


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo", "grpo"])
def test_what_is_too_long_is_told_before_a_model_is_loaded(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def load_policy(*args: Any, **options: Any) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("espalier.stages.setup.Setup.load_policy", load_policy)
    with pytest.raises(
        UserError, match=r":\d+: [\d,]+ tokens, but \w+ is \d+ .*such records among.*overlong: drop"
    ):
        run_stage(options_of(world, tmp_path, stage, cutoff_len=16))
