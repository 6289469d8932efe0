"""A model's folder is opened in one way: what a command may read of it is asked for by the same words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import espalier
from espalier.cli import app
from espalier.errors import UserError
from espalier.models.adapters.kinds import add_lora
from espalier.models.forward import TreeModel
from espalier.models.heads import ScalarHead
from espalier.models.load import load_lm, train_tokenizer
from espalier.models.open import open_model
from espalier.models.probe import probe
from espalier.models.saved import save_model

Tiny = Callable[..., nn.Module]


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A llama with a tokenizer, in safetensors."""
    made = tmp_path / "model"
    made.mkdir()
    lm = tiny("llama", vocab_size=300)
    save_model(made, TreeModel(lm, probe(lm)), train_tokenizer(["1+1= 2, 2+2= 4"] * 3, 290))
    return made


@pytest.fixture
def pickled(folder: Path) -> Path:
    """The same with its weights in a .bin file."""
    torch.save(load_lm(str(folder)).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def run(words: list[str]) -> str:
    """What a command prints; its error is raised."""
    done = CliRunner().invoke(app, words, input="1+1=\n/exit\n")
    if done.exception is not None:
        raise done.exception
    return done.output


def words_of(command: str, model: Path, tmp_path: Path) -> list[str]:
    if command == "chat":
        return ["chat", str(model), "--max-new-tokens", "2"]
    if command == "inspect":
        return ["inspect", str(model)]
    (tmp_path / "sums.jsonl").write_text(json.dumps({"q": "1+1=", "answer": "2"}), "utf-8")
    task = {
        "name": "sums",
        "data": "sums.jsonl",
        "question": "{{ q }}",
        "candidates": ["2", "3"],
        "gold": "{{ answer }}",
    }
    (tmp_path / "sums.yaml").write_text(json.dumps(task), "utf-8")  # JSON is YAML
    return ["evaluate", str(model), "--tasks", str(tmp_path / "sums.yaml"), "--out", str(tmp_path / "out")]


@pytest.mark.parametrize("command", ["chat", "evaluate", "inspect"])
def test_pickled_weights_are_read_where_a_command_is_told_to(
    pickled: Path, command: str, tmp_path: Path
) -> None:
    words = words_of(command, pickled, tmp_path)
    with pytest.raises(
        UserError, match=r"pytorch_model\.bin.*`allow_pickle: true`, on the command line --allow-pickle"
    ):
        run(words)
    run([*words, "--allow-pickle"])


@pytest.mark.parametrize("command", ["chat", "evaluate", "inspect"])
def test_code_that_comes_with_a_model_is_run_where_a_command_is_told_to(
    folder: Path, command: str, tmp_path: Path
) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    code = (
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "class Own(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = Own\n"
    )
    (folder / "own.py").write_text(code, "utf-8")
    words = words_of(command, folder, tmp_path)
    with pytest.raises(UserError, match=r"`trust_remote_code: true` \(chat, evaluate and inspect: --trust-r"):
        run(words)
    assert not (tmp_path / "ran").exists()
    run([*words, "--trust-remote-code"])
    assert (tmp_path / "ran").exists()


def adapter_of(base: Path, folder: Path) -> Path:
    """A LoRA of `base` in `folder`, without a tokenizer of its own."""
    folder.mkdir()
    lm = add_lora(load_lm(str(base)), rank=2, alpha=4, dropout=0.0, target=["q_proj"], bias="none")
    save_model(folder, TreeModel(lm, probe(lm)), None)
    return folder


def test_an_adapters_folder_without_a_tokenizer_takes_its_bases(folder: Path, tmp_path: Path) -> None:
    adapter = adapter_of(folder, tmp_path / "adapter")
    _, tokenizer = espalier.load_model(str(adapter), device="cpu")
    assert tokenizer is not None and tokenizer.encode("1+1=")
    run(words_of("chat", adapter, tmp_path))


def test_what_is_opened_is_one_value(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    opened = open_model(str(folder), device="cpu", dtype="bfloat16")
    assert next(opened.lm.parameters()).dtype == torch.bfloat16 and opened.scalar_head is None
    assert opened.tree_model().traits.method == "pieces" and not opened.tree_model().training
    assert opened.tree_model("padded").traits.method == "padded"
    lm = load_lm(str(folder))
    judge = tmp_path / "judge"
    judge.mkdir()
    save_model(judge, TreeModel(lm, probe(lm), ScalarHead(32)), None)
    opened = open_model(str(judge), device="cpu")
    assert opened.scalar_head is not None and opened.tree_model().scalar_head is opened.scalar_head
    assert opened.tokenizer is None
    with pytest.raises(UserError, match="judge: no tokenizer here"):
        _ = opened.required_tokenizer
