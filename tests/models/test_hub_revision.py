"""A revision of a hub id is what is trained, saved as a base and loaded again: by the hub's own client, from its cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from torch import nn

from espalier.config import split_pipeline
from espalier.config.file import RawConfig
from espalier.errors import UserError
from espalier.models.forward import TreeModel
from espalier.models.hub_revision import at_revision, on_the_hub
from espalier.models.identity import model_identity
from espalier.models.load import load_lm, train_tokenizer
from espalier.models.merging import stack_of
from espalier.models.open import open_model
from espalier.models.probe import probe
from espalier.models.run_folder import find_model
from espalier.models.saved import save_model
from espalier.runs.pipeline import ALL_CLASSES
from tests.test_cli import call

Tiny = Callable[..., nn.Module]
ID = "somebody/tiny"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture
def hub(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with two commits of one model: other weights, and other vocabularies."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    top = cache / "models--somebody--tiny"
    (top / "refs").mkdir(parents=True)
    for seed, (name, commit) in enumerate(COMMITS.items()):
        lm = tiny("llama", seed, vocab_size=300 + seed)
        tokenizer = train_tokenizer(["12 + 3 = 15"], 290 + seed)
        save_model(top / "snapshots" / commit, TreeModel(lm, probe(lm)), tokenizer)
        (top / "refs" / name).write_text(commit, "utf-8")
    return top / "snapshots"


def weight(lm: Any) -> torch.Tensor:
    found: torch.Tensor = lm.get_input_embeddings().weight
    return found


def options(tmp_path: Path, **keys: Any) -> str:
    rows = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(8)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    made = {"stage": "sft", "model_name_or_path": ID, "model_revision": "v1", "template": "simple", "samples": 0,
            "dataset": str(tmp_path / "sums.jsonl"), "output_dir": str(tmp_path / "run"), "cutoff_len": 64,
            "max_steps": 1, "precision": "fp32"} | keys  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(made), "utf-8")
    return str(tmp_path / "run.yaml")


def test_a_branch_and_a_commit_are_their_folder_and_say_which_they_are(hub: Path) -> None:
    for name in ("v1", COMMITS["v1"]):
        found = at_revision(ID, name)
        assert Path(found) == hub / COMMITS["v1"] and on_the_hub(found) == (ID, COMMITS["v1"])
        assert at_revision(found, name) == found
    assert not torch.equal(weight(load_lm(at_revision(ID, "v1"))), weight(load_lm(at_revision(ID, "main"))))


def test_what_has_no_such_revision_is_refused_by_name(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"somebody/tiny: revision v9 cannot be fetched .* Give a branch, a tag"
    ):
        at_revision(ID, "v9")
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine", hub / COMMITS["main"]):
        with pytest.raises(
            UserError, match=r"`model_revision` is v1, and .* is a folder, which has no revisions"
        ):
            at_revision(str(folder), "v1")
        assert at_revision(str(folder), "main") == str(folder)


@pytest.mark.slow
def test_a_run_trains_the_revision_and_its_adapter_finds_it_again(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("sft", options(tmp_path, finetuning_type="lora", learning_rate=1e-9)) == 0
    settings = json.loads((tmp_path / "run/sft/model/adapter_config.json").read_text("utf-8"))
    assert (settings["base_model_name_or_path"], settings["revision"]) == (ID, COMMITS["v1"])
    written = (tmp_path / "run/sft/config.yaml").read_text("utf-8")
    assert f"model_name_or_path: {ID}\n" in written and "model_revision: v1\n" in written
    opened = open_model(find_model(str(tmp_path / "run"), say=lambda line: None), device="cpu")
    original, other = (load_lm(str(hub / COMMITS[name])) for name in ("v1", "main"))
    assert torch.allclose(weight(opened.lm), weight(original), atol=1e-6)
    assert weight(opened.lm).shape != weight(other).shape
    folder = str(tmp_path / "run/sft/model")
    assert stack_of([folder]).base == str(hub / COMMITS["v1"])
    of_base = {key for key in model_identity(folder) if key.startswith("base/")}
    assert "base/model.safetensors" in of_base
    capsys.readouterr()
    assert call("sft", str(tmp_path / "run/sft/config.yaml")) == 0
    assert "done already" in capsys.readouterr().err
    assert call("inspect", str(tmp_path / "run.yaml"), "--json") == 0
    parts = json.loads(capsys.readouterr().out)["sft"]["trained_parameters"]
    assert parts["embeddings"]["all"] == weight(original).numel()


def test_a_pipeline_s_revision_is_its_shared_model_s() -> None:
    shared = {"model_name_or_path": ID, "model_revision": "v1", "dataset": "d"}
    stages = [{"name": "before", "stage": "evaluate", "tasks": ["t"]}, {"name": "first", "stage": "sft"},
              {"name": "then", "stage": "dpo", "model_name_or_path": "run:first"}]  # fmt: skip
    before, first, then = split_pipeline(RawConfig.of({**shared, "stages": stages}), ALL_CLASSES)
    assert before["model_revision"] == first["model_revision"] == "v1" and "model_revision" not in then
