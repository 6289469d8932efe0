"""A reward model in an earlier project's layout rewards answers, and is examined, as the same one in ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from espalier.errors import UserError
from tests.stages.conftest import rows, run
from tests.test_cli import call


@pytest.fixture
def old(world: Path, tmp_path: Path) -> Path:
    """The world's judge as DeepSpeed-Chat would have saved it; its one file of weights."""
    folder = tmp_path / "old"
    shutil.copytree(world / "judge", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((world / "base" / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    state = load_file(world / "judge" / "model.safetensors")
    renamed = {
        f"rwtranrsformer.{n.removeprefix('model.')}": t for n, t in state.items() if n != "score.weight"
    }
    torch.save(renamed | {"v_head.weight": state["score.weight"]}, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def test_it_rewards_answers(
    old: Path, world: Path, options: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = []
    for name in (str(old.parent), str(world / "judge")):
        made = options("grpo", reward_model=name, max_steps=2, allow_pickle=True)
        del made["reward_function"]
        made["output_dir"] = str(tmp_path / f"run {len(found)}")
        run(made)
        found.append([row["reward"] for row in rows(made) if "reward" in row])
    assert found[0] == pytest.approx(found[1], abs=1e-5) and len(found[0]) == 2
    assert all(abs(reward) > 1e-3 for reward in found[0])
    made["reward_model"], made["allow_pickle"] = str(old.parent), False
    with pytest.raises(UserError, match="the weights are pickles"):
        run(made | {"output_dir": str(tmp_path / "refused")})


def test_it_is_examined_and_converted_by_its_file(
    old: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("convert", str(old), str(tmp_path / "plain"), "--allow-pickle") == 0
    found = []
    for name in (str(old), str(tmp_path / "plain"), str(world / "judge")):
        out = tmp_path / f"marks {len(found)}"
        words = ["evaluate", name, "--tasks", f"reward:{world / 'pref_dev.jsonl'}", "--out", str(out)]
        assert call(*words, "--allow-pickle") == 0, capsys.readouterr().err
        (task,) = json.loads((out / "results.json").read_text("utf-8"))["tasks"].values()
        found.append(task["metrics"])
    assert found[0] == pytest.approx(found[2], abs=1e-5)
    assert found[1] == pytest.approx(found[2], abs=1e-5)
