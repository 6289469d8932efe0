"""Fixtures that every room's tests may use."""

from __future__ import annotations

import os

# Before torch: tiny products on all cores take ten times as long as on one where anything else is running.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets and golden files beside the project; absent on a user's machine."""
    folder = Path(os.environ.get("ESPALIER_SHARED", Path(__file__).resolve().parents[1].parent / "shared"))
    if not folder.is_dir():
        pytest.skip("the real data sets (a folder `shared` beside the project) are not on this machine")
    return folder
