"""The exams' real files, each with a file to take solved examples from."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import pytest

from tests.conftest import SAMPLES, real_data

_WITHOUT_TRAIN = {"afqmc": 300, "cmnli": 300}  # real files have no train part: some of dev takes its place


@pytest.fixture(scope="session")
def exams(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the exams' folders, all real; CSLDCP is a sample in its layout."""
    folder = tmp_path_factory.mktemp("exams")
    for source in (shared / "data").iterdir():
        if source.is_dir() and source.name not in _WITHOUT_TRAIN and source.name != "lcsts":
            (folder / source.name).symlink_to(source)
    for name, many in _WITHOUT_TRAIN.items():
        (folder / name).mkdir()
        with (shared / "data" / name / "dev.json").open(encoding="utf-8") as lines:
            (folder / name / "dev.json").write_text("".join(islice(lines, many)), "utf-8")
            (folder / name / "train.json").write_text("".join(islice(lines, 50)), "utf-8")
    (folder / "lcsts").mkdir()
    for kind in ("src", "tgt"):
        shutil.copy(shared / "data" / "lcsts" / f"test.{kind}.txt", folder / "lcsts" / f"test.{kind}.txt")
        lines = (shared / "data" / "lcsts" / f"test.{kind}.txt").read_text("utf-8").splitlines(True)
        (folder / "lcsts" / f"train.{kind}.txt").write_text("".join(lines[-50:]), "utf-8")
    (folder / "csldcp").mkdir()
    for name, rows in (("dev_few_all", 4), ("train_few_all", 6)):
        text = "".join(
            f'{{"content": "{name}论文{i}研究了方法。", "label": "学科{i % 3}", "id": {i}}}\n'
            for i in range(rows)
        )
        (folder / "csldcp" / f"{name}.json").write_text(text, "utf-8")
    return folder


@pytest.fixture(scope="session", params=["samples", *(["real"] if real_data() else [])])
def layouts(request: pytest.FixtureRequest) -> Path:
    """The exams' folders: a few questions of each written for these tests, and the real ones where they are."""
    if request.param == "samples":
        return SAMPLES / "exams"
    folder: Path = request.getfixturevalue("exams")
    return folder
