"""Code that comes with a model: refused by the option's name, never asked for by what we write; pickles likewise."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from espalier.cli import app
from espalier.errors import UserError
from espalier.models.forward import TreeModel
from espalier.models.load import load_lm, load_tokenizer, train_tokenizer
from espalier.models.load_adapted import load_with_adapter
from espalier.models.probe import probe
from espalier.models.saved import save_model

Tiny = Callable[..., nn.Module]


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A llama whose settings name code that lies beside it, and would leave a file behind if it ran."""
    made = tmp_path / "base"
    made.mkdir()
    lm = tiny("llama")
    save_model(made, TreeModel(lm, probe(lm)), train_tokenizer(["some text"] * 3, 290))
    change(made / "config.json", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"})
    change(made / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokens", None]})
    (made / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", "utf-8")
    return made


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **settings}), "utf-8")


@pytest.mark.parametrize("command", ["load", "inspect"])
def test_the_refusal_names_the_option(
    folder: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(folder / "config.json", model_type="own")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question is asked"))
    with pytest.raises(UserError, match=r"own\.Own, own\.OwnModel.*set `trust_remote_code: true`"):
        if command == "load":
            load_lm(str(folder))
        else:
            done = CliRunner().invoke(app, ["inspect", str(folder)])
            assert done.exception is not None
            raise done.exception
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("way", ["save", "convert", "quantize"])
def test_nothing_that_is_written_points_to_code_that_is_not_there(
    folder: Path, way: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if way == "convert":
        done = CliRunner().invoke(app, ["convert", str(folder), str(out)])
        assert done.exit_code == 0, done.exception
    elif way == "quantize":
        done = CliRunner().invoke(app, ["quantize", str(folder), str(out), "--no-measure"])
        assert done.exit_code == 0, done.exception
    else:
        out.mkdir()
        lm = load_lm(str(folder))
        save_model(out, TreeModel(lm, probe(lm)), load_tokenizer(str(folder)))
    for file in out.glob("*.json"):
        assert "auto_map" not in file.read_text("utf-8"), file
    load_lm(str(out))
    load_tokenizer(str(out))
    assert not (tmp_path / "ran").exists()


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", ["pickle", "torch", "cut"])
@pytest.mark.parametrize("command", ["load", "convert"])
def test_a_pickle_with_more_than_tensors(folder: Path, form: str, command: str, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    file, bomb = folder / "pytorch_model.bin", {"w": Bomb(tmp_path / "ran")}
    if form == "torch":
        torch.save(bomb, file)
    else:
        file.write_bytes(pickle.dumps(bomb) if form == "pickle" else b"PK\x03\x04 cut")
    with pytest.raises(UserError) as refused:
        if command == "load":
            load_lm(str(folder), allow_pickle=True)
        else:
            done = CliRunner().invoke(app, ["convert", str(folder), str(tmp_path / "out"), "--allow-pickle"])
            assert done.exception is not None
            raise done.exception
    said = str(refused.value)
    assert "weights_only" not in said and "torch.load" not in said and "\n" not in said
    assert form == "cut" or "nothing was run" in said
    assert not (tmp_path / "ran").exists()


def test_an_adapter_that_is_a_pickle_with_more_than_tensors(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": str(folder)}), "utf-8"
    )
    torch.save({"w": Bomb(tmp_path / "ran")}, adapter / "adapter_model.bin")
    with pytest.raises(UserError, match="nothing was run") as refused:
        load_with_adapter(str(adapter))
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "ran").exists()
