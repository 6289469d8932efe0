"""Fixtures that every room's tests may use."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import os
import signal
import sys

# Before torch: tiny products on all cores take ten times as long as on one where anything else is running.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

if hasattr(signal, "SIGHUP"):  # under nohup it is ignored, and so it would be by what the tests start
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Each run asks eight times for the versions of libraries, which stand in files that take 3 ms to read.
importlib.metadata.version = functools.cache(importlib.metadata.version)

# Of what a test makes nearly all is freed without the collection, which by default begins anew at each 700 objects more.
gc.set_threshold(50_000, 20, 20)

_WITHOUT_REAL_DATA = "the real data sets (a folder `shared` beside the project) are not on this machine"
SAMPLES = Path(__file__).parent / "samples"
"""A few records of each layout, written for these tests."""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was not tested for want of the real data, in one line."""
    skipped = terminalreporter.stats.get("skipped", [])
    missing = sum(_WITHOUT_REAL_DATA in str(report.longrepr) for report in skipped)
    if missing:
        terminalreporter.write_line(
            f"{missing} tests need the real data sets or old checkpoints (a folder `shared` beside the project, or "
            "ESPALIER_SHARED=FOLDER) and were skipped; the others ran on tests/samples and on what they make."
        )


def pytest_collection_finish() -> None:
    """What the libraries and the tests have made so far stays: a collection need not look through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run waits forty times for the disk; only a machine that loses its power could show that it had not."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor))


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model says to the held-out prompts that are shown took a third of the time of a tiny run."""
    if "espalier.runs.validation" in sys.modules:
        monkeypatch.setattr("espalier.runs.validation.SAMPLE_TOKENS", 8)


def real_data() -> Path | None:
    """The folder of real data sets and golden files beside the project, where there is one."""
    folder = Path(os.environ.get("ESPALIER_SHARED", Path(__file__).resolve().parents[1].parent / "shared"))
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets and golden files beside the project; absent on a user's machine."""
    folder = real_data()
    if folder is None:
        pytest.skip(_WITHOUT_REAL_DATA)
    return folder


def for_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of one run of the tests share; what is made there is made under a lock."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


Golden = Callable[[str], Path]
"""The folder of an old checkpoint, by its family's name."""


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """Old checkpoints in their original layouts: recorded from the original code where that is here, else made.

    The numbers of the made ones are our own module's (`tests/golden/made.py`), so there the tests hold that a
    checkpoint is read, converted and used without a loss; that the module computes what the original computed is
    held by the recorded ones.
    """
    folder = real_data()
    if folder is not None:
        return lambda family: folder / "golden" / family
    made = tmp_path_factory.mktemp("golden")

    def get(family: str) -> Path:
        from tests.golden.made import make

        return made / family if (made / family).is_dir() else make(family, made / family)

    return get


Vocabulary = Callable[[str], Path]
"""The folder of a tokenizer, by its name."""


@pytest.fixture(scope="session")
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    """Real tokenizers by their names; without the real data, small ones in the same files, trained here."""
    folder = real_data()
    if folder is not None:
        return lambda name: folder / "data" / "tokenizers" / name
    return request.getfixturevalue("made_vocabulary")


@pytest.fixture(scope="session")
def made_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """Small tokenizers in the files of the real ones, trained here."""
    made = tmp_path_factory.mktemp("vocabulary")

    def get(name: str) -> Path:
        from tests.golden.vocabularies import MAKERS

        if not (made / name).is_dir():
            (made / name).mkdir()
            MAKERS[name](made / name)
        return made / name

    return get


@pytest.fixture(scope="session")
def converted(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """Real vocabularies as they are after a conversion, saved: the conversion itself, once for all, takes seconds."""
    for_all = for_all_workers(tmp_path_factory)

    def get(name: str) -> Path:
        from espalier.models.load import load_tokenizer

        folder = for_all / f"converted-{name}"
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                tokenizer = load_tokenizer(str(shared / "data" / "tokenizers" / name))
                tokenizer.save_pretrained(str(folder))
        return folder

    return get
