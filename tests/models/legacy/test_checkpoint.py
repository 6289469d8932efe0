"""Folders as people have them: shards, pickles, missing and foreign tensors; and the command."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import espalier
from espalier.cli import app
from espalier.errors import UserError
from espalier.models.legacy import checkpoint
from espalier.models.legacy.families import family_of
from espalier.models.load import load_lm
from tests.conftest import Golden
from tests.models.legacy.plain import IDS


@pytest.fixture
def state(golden: Golden) -> dict[str, Tensor]:
    return load_file(golden("baichuan_7b") / "model.safetensors")


@pytest.fixture
def folder(golden: Golden, tmp_path: Path) -> Path:
    made = tmp_path / "old"
    made.mkdir()
    shutil.copy(golden("baichuan_7b") / "config.json", made)
    return made


def logits(where: Path, **options: Any) -> Tensor:
    model, _ = espalier.load_model(str(where), device="cpu", **options)
    with torch.no_grad():
        return model(input_ids=IDS).logits


def split(state: dict[str, Tensor], folder: Path, name: str, save: Any) -> None:
    names = sorted(state)
    parts = [names[i::3] for i in range(3)]
    places = {}
    for i, part in enumerate(parts):
        file = f"{name}-{i + 1:05}-of-00003" + (".safetensors" if name == "model" else ".bin")
        save({n: state[n].contiguous() for n in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = f"{name}.safetensors.index.json" if name == "model" else f"{name}.bin.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("kind", ["one", "shards", "old form", "shards of safetensors"])
def test_every_way_to_store_weights(
    kind: str, folder: Path, state: dict[str, Tensor], golden: Golden
) -> None:
    expected = logits(golden("baichuan_7b"))
    if kind == "one":
        torch.save(state, folder / "pytorch_model.bin")
    elif kind == "old form":
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif kind == "shards":
        split(state, folder, "pytorch_model", torch.save)
    else:
        split(state, folder, "model", save_file)
    if kind != "shards of safetensors":
        with pytest.raises(UserError, match=r"pytorch_model.*\.bin.*`allow_pickle: true`.*convert IN OUT"):
            logits(folder)
    assert torch.equal(logits(folder, allow_pickle=True), expected)


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_that_runs_code_is_not_run(zipped: bool, folder: Path, tmp_path: Path) -> None:
    held = {"model.norm.weight": Malicious(tmp_path / "was run")}
    if zipped:
        torch.save(held, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(held))
    with pytest.raises(UserError, match=r"pytorch_model\.bin: torch's safe loader does not take it"):
        logits(folder, allow_pickle=True)
    assert not (tmp_path / "was run").exists()


def test_a_shard_that_is_missing(folder: Path, state: dict[str, Tensor]) -> None:
    split(state, folder, "model", save_file)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"index\.json: names model-00002.*not here.*Copy the whole"):
        logits(folder)


def test_an_index_that_points_elsewhere(folder: Path, state: dict[str, Tensor]) -> None:
    save_file(state, folder.parent / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../other.safetensors"}}')
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="not here"):
        logits(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.norm.weight": None}, r"lacks 1 tensors \(model\.norm\.weight"),
        ({"model.layers.9.mlp.up_proj.weight": torch.ones(2)}, "the architecture has not, 1"),
        ({"model.norm.weight": torch.ones(7)}, r"another shape 1 tensors \(model\.norm\.weight \(7,\)"),
    ],
)
def test_tensors_that_do_not_fit(
    change: dict[str, Any], said: str, folder: Path, state: dict[str, Tensor]
) -> None:
    kept = {name: t for name, t in (state | change).items() if t is not None}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(UserError, match=said):
        logits(folder)


def test_a_tied_head_that_differs_after_all_is_kept(folder: Path, state: dict[str, Tensor]) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]  # absent: true
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    model: Any = espalier.load_model(str(folder), device="cpu")[0]
    assert torch.equal(model.lm_head.weight, state["lm_head.weight"])
    assert torch.equal(model.model.embed_tokens.weight, state["model.embed_tokens.weight"])
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors")
    model = espalier.load_model(str(folder), device="cpu")[0]
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "glm", "block_position_encoding": True}, "glm"),
        ({"model_type": "glm", "num_hidden_layers": 40, "head_dim": 128}, None),
        ({"model_type": "chatglm", "inner_hidden_size": 16384}, "chatglm"),
        ({"model_type": "chatglm", "padded_vocab_size": 65024}, "chatglm2"),
        (
            {
                "model_type": "baichuan",
                "architectures": ["BaiChuanForCausalLM"],
                "max_position_embeddings": 9,
            },
            "baichuan_7b",
        ),
        ({"model_type": "baichuan", "vocab_size": 64000}, "baichuan_13b"),
        ({"model_type": "baichuan", "vocab_size": 125696}, "baichuan2_13b"),
        ({"model_type": "baichuan", "tokenizer_class": "BaichuanTokenizer"}, "baichuan2_13b"),
        ({"model_type": "baichuan", "vocab_size": 125696, "max_position_embeddings": 4096}, "baichuan2_7b"),
        ({"model_type": "pangu"}, "pangu"),
        ({"model_type": "llama"}, None),
        ({}, None),
    ],
)
def test_families_are_told_apart(config: dict[str, Any], family: str | None) -> None:
    found = family_of(config)
    assert (None if found is None else found.name) == family


def test_the_command(folder: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    half = {name: t.half() for name, t in state.items()}
    torch.save(half, folder / "pytorch_model.bin")
    runner = CliRunner()
    out = tmp_path / "plain"
    refused = runner.invoke(app, ["convert", str(folder), str(out)])
    assert isinstance(refused.exception, UserError)
    done = runner.invoke(app, ["convert", str(folder), str(out), "--allow-pickle"])
    assert done.exit_code == 0, done.exception
    assert "LlamaForCausalLM" in done.output
    assert "float16" in done.output
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    again = runner.invoke(app, ["convert", str(folder), str(out), "--allow-pickle"])
    assert isinstance(again.exception, UserError)
    assert load_lm(str(out), dtype=None).dtype == torch.float16
    assert (logits(out) - logits(folder, allow_pickle=True)).abs().max() == 0


def test_a_hub_id_is_fetched_without_its_code(
    folder: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(state, folder / "model.safetensors")
    asked: list[list[str]] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        assert name == "someone/baichuan"
        asked.append(allow_patterns)
        return str(folder)

    config = json.loads((folder / "config.json").read_text())
    monkeypatch.setattr("espalier.models.load.check_reachable", lambda name: None)
    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    monkeypatch.setattr(checkpoint.PreTrainedConfig, "get_config_dict", lambda name: (config, {}))
    model: Any = load_lm("someone/baichuan")
    assert model.config.model_type == "llama"
    assert "*.safetensors" in asked[0]
    assert not {"*.bin", "*.py"} & set(asked[0])
    config["model_type"] = "llama"
    assert checkpoint.fetched("someone/baichuan") is None
    assert checkpoint.fetched(str(folder)) is None


def test_any_other_pickled_folder_is_converted_too(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, n_positions=32))
    model.config.save_pretrained(str(tmp_path / "old"))
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    done = CliRunner().invoke(
        app, ["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--allow-pickle"]
    )
    assert done.exit_code == 0, done.exception
    with torch.no_grad():
        assert (logits(tmp_path / "new") - model.eval()(IDS).logits).abs().max() < 1e-6
