"""A tiny model to talk to, opened once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.heads import ScalarHead
from espalier.models.open import open_model
from espalier.models.probe import probe
from espalier.models.saved import save_model
from espalier.serve.model import ServedModel
from espalier.serve.requests import EngineLimits

TEXTS = ["你好，世界。今天天气很好。", "Hello world, how are you today?"] * 20
TINY = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 400}  # fmt: skip


def make_model(folder: Path, *, scores: bool = False, **settings: object) -> Path:
    """A saved model whose answers are noise, but neither all alike nor soon at an end."""
    tokenizer = load.train_tokenizer(TEXTS, 300)
    torch.manual_seed(1)
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    lm = load.new_lm({**TINY, **settings}, len(tokenizer), ids)
    for parameter in lm.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.18)
    head = ScalarHead(32) if scores else None
    if head is not None:
        torch.nn.init.normal_(head.weight)
    folder.mkdir(exist_ok=True)
    save_model(folder, TreeModel(lm, probe(lm), head), tokenizer)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("reward") / "model", scores=True)


@pytest.fixture
def served(folder: Path) -> Iterator[ServedModel]:
    model = ServedModel(
        "tiny", open_model(str(folder), device="cpu"), limits=EngineLimits(0, rows=8, waiting=9)
    )
    yield model
    model.close()
