"""`espalier inspect MODEL`: its modules, numbers and files, with the weights and without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from espalier.commands.inspect.modules import module_tree
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from espalier.models.quantise.methods import Quantisation
from espalier.models.saved import save_model
from tests.conftest import Golden
from tests.test_cli import call

SIZES = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
         "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}  # fmt: skip
BLOCK = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    tokenizer = load.train_tokenizer(["the quick brown fox"] * 3, 300)
    torch.manual_seed(0)
    lm = load.new_lm(SIZES, len(tokenizer), {"eos_token_id": tokenizer.eos_token_id})
    for name in ("plain", "small"):
        (found / name).mkdir()
        save_model(found / name, TreeModel(lm, probe(lm)), tokenizer)
        lm = load.load_lm(str(found / "plain"), quantisation=Quantisation("cpm", 4))
    adapted: Any = get_peft_model(
        load.load_lm(str(found / "plain")), LoraConfig(r=4, target_modules=["q_proj"])
    )  # type: ignore[arg-type]
    adapted.save_pretrained(found / "adapter")
    return found


def facts(name: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert call("inspect", str(name), "--json", *more) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("more", [(), ("--no-probe",)])
def test_what_the_files_say_without_weights_too(
    more: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if more:
        monkeypatch.setattr(load, "load_lm", None)  # nothing may load weights
    found = facts(folder / "plain", capsys, *more)
    rows = found["vocab_size"]
    assert found["parameters"] == 2 * rows * 32 + 3 * BLOCK + 32
    assert found["memory_bytes"] == {"float32": 4 * found["parameters"]}
    assert found["context_length"] == 128 and found["rope_scaling"]["rope_type"] == "linear"
    assert found["special_tokens"]["eos"].startswith("<|im_end|> = ")
    assert found["family"] == "llama" and not found["tied_embeddings"]
    assert found.get("layout") == (None if more else "tree")
    (blocks,) = found["modules"]["children"][0]["children"][1]["children"]
    assert (blocks["name"], blocks["copies"], blocks["parameters"]) == ("0-2", 3, 3 * BLOCK)
    assert blocks["children"][0]["children"][1]["tensors"] == {"weight": "[16, 32]"}


def test_weights_in_few_bits_count_as_what_they_stand_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, small = facts(folder / "plain", capsys), facts(folder / "small", capsys)
    assert small["parameters"] == plain["parameters"] and small["quantisation"] == "cpm, 4 bits"
    assert small["memory_bytes"]["int4"] == 3 * (BLOCK - 64) // 2
    bare = facts(folder / "small", capsys, "--no-probe")
    assert bare["quantisation"] == "cpm, 4 bits" and bare["parameters"] == plain["parameters"]
    assert sum(bare["memory_bytes"].values()) == sum(small["memory_bytes"].values())


@pytest.mark.parametrize("more", [(), ("--no-probe",)])
def test_an_adapter_shows_what_it_trains(
    more: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = facts(folder / "adapter", capsys, *more)
    assert found["trainable_parameters"] == 3 * 4 * (32 + 32)
    assert found["base"] == str(folder / "plain") and found["adapter"]["peft_type"] == "LORA"


def test_an_old_checkpoint(golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    name = golden("chatglm")
    loaded, bare = facts(name, capsys), facts(name, capsys, "--no-probe")
    assert loaded["layout"] == "padded" and loaded["parameters"] == bare["parameters"]
    assert loaded["modules"] == bare["modules"] and loaded["special_tokens"] is None


def test_the_table_fits_on_a_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", str(folder / "small")) == 0
    out = capsys.readouterr().out
    assert "0-2 x 3 LlamaDecoderLayer" in out and "[32, 32] int4" in out
    assert "layout reason" in out and "cpm, 4 bits" in out and out.count("\n") < 60


def test_a_tied_head_counts_once() -> None:
    lm = load.new_lm({**SIZES, "tie_word_embeddings": True}, 300, {})
    made = module_tree(lm)
    assert made.total == sum(p.numel() for p in lm.parameters()) == 300 * 32 + 3 * BLOCK + 32
    assert made.children[1].tensors == [("weight", "[300, 32] (tied)")]


def test_only_blocks_that_are_alike_are_put_together() -> None:
    parts = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)]
    made = module_tree(torch.nn.ModuleList(parts))
    assert [(c.name, c.copies, c.total) for c in made.children] == [("0-1", 2, 12), ("2-3", 2, 18)]
    parts[1].requires_grad_(False)
    assert [c.name for c in module_tree(torch.nn.ModuleList(parts)).children] == ["0", "1", "2-3"]
