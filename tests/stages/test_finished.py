"""A run that is done already is known without torch; whatever was touched since is looked at by its contents."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier import config
from espalier.runs import finished, pipeline
from tests.stages.conftest import options_of
from tests.test_cli import call


class Slow(Exception):
    """The long way was taken."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Whether a file is known to be done without the long way, which is not gone."""

    def slow(*words: Any) -> int:
        raise Slow

    def ask(*words: str) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "run_on_all", slow)
            try:
                return call("run", *words) == 0
            except Slow:
                return False

    return ask


@pytest.mark.slow
def test_done_already_is_known_until_anything_is_touched(
    world: Path, tmp_path: Path, quick: Callable[..., bool], capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes((world / "sft_train.jsonl").read_bytes())
    options = options_of(world, tmp_path / "run", "sft", dataset=[str(data)], max_steps=1, samples=0)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(options), "utf-8")
    assert not quick(str(file)), "nothing is there yet"
    assert call("run", str(file)) == 0
    capsys.readouterr()
    assert quick(str(file))
    told = capsys.readouterr().err
    assert "sft: done already" in told and "talk to it" in told and "report.html" in told

    assert not quick(str(file), "learning_rate=0.5"), "another option"
    assert not quick(str(file), "resume=false"), "a new start is asked for"
    for path in (data, tmp_path / "run" / "sft" / "summary.json", tmp_path / "run" / "report.html"):
        content = path.read_bytes()
        state = path.stat()
        path.write_bytes(content + b"\n")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert not quick(str(file)), f"{path} was touched"
        path.write_bytes(content)
        assert not quick(str(file)), "the time of change says so, whatever the content"
        assert call("run", str(file)) == 0, "the same content: done, and noted again"
        assert quick(str(file))
    (tmp_path / "run" / "sft" / "model" / "more.json").write_text("{}", "utf-8")
    assert not quick(str(file)), "a file more"


@pytest.mark.parametrize("stage", finished.KNOWN)
def test_all_that_a_run_is_made_from_is_among_what_is_looked_at(
    stage: str, world: Path, tmp_path: Path
) -> None:
    read = finished.read_by([config.RawConfig(options_of(world, tmp_path / "run", stage))])
    assert read is not None
    names = {Path(path).name for path in read["read"]}
    assert {path.name for path in (world / "base").iterdir()} <= names
    assert sum(name.endswith(".jsonl") for name in names) == 2, "trained on, and held out"


def test_in_doubt_nothing_is_said(world: Path, tmp_path: Path) -> None:
    def read(stage: str = "sft", **changes: Any) -> Any:
        return finished.read_by([config.RawConfig(options_of(world, tmp_path / "run", stage, **changes))])

    assert read() is not None
    assert read("grpo") is None, "rewards may be code"
    assert read(resume=False) is None
    assert read(model_name_or_path="own/er") is None, "the hub may have another version"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}", "utf-8")
    assert read(model_name_or_path=str(adapter)) is None, "its base is elsewhere"


def test_a_run_during_which_its_data_changed_is_not_noted(world: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("{}", "utf-8")
    stages = [config.RawConfig(options_of(world, tmp_path / "run", "sft", dataset=[str(data)]))]
    (tmp_path / "run").mkdir()
    before = finished.read_by(stages)
    data.write_text("{} ", "utf-8")
    finished.note(stages, tmp_path / "run", before)
    assert not (tmp_path / "run" / finished.NOTE).exists()
    finished.note(stages, tmp_path / "run", finished.read_by(stages))
    assert (tmp_path / "run" / finished.NOTE).exists() and finished.is_finished(stages, tmp_path / "run")
