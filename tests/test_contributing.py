"""The worked examples of CONTRIBUTING.md are applied to a copy of the package, and what stands below them is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", PAGE, re.M | re.S))


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def files_of(diff: str) -> Iterator[tuple[str, list[str]]]:
    """(path, hunks) of a diff; a hunk's place is known by its text, so its line numbers are left out."""
    for path, body in re.findall(r"^--- \S+\n\+\+\+ b/(\S+)\n(.*?)(?=^--- |\Z)", diff, re.M | re.S):
        yield path, [hunk for hunk in re.split(r"^@@\n", body, flags=re.M) if hunk]


def apply(diff: str, root: Path) -> list[str]:
    """Apply to the files below `root`; each hunk must fit at one place. Returns the paths."""
    changed = []
    for path, hunks in files_of(diff):
        file = root / path
        text = file.read_text("utf-8") if file.is_file() else ""
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            assert {line[0] for line in lines} <= {" ", "+", "-"}, hunk
            before = "".join(line[1:] for line in lines if line[0] != "+")
            after = "".join(line[1:] for line in lines if line[0] != "-")
            if file.is_file():
                assert text.count(before) == 1, (
                    f"{path}: this stands there {text.count(before)} times:\n{before}"
                )
            text = text.replace(before, after) if before else after
        file.write_text(text, "utf-8")
        changed.append(path)
    return changed


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with all the examples applied."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for section in SECTIONS.values():
        for diff in blocks("diff", section):
            apply(diff, root)
    return root


def test_the_table_counts_the_files_of_each_example() -> None:
    told = {name: int(n) for name, n in re.findall(r"^\| (an? .+?) \| (\d+) \|$", PAGE, re.M)}
    touched = {
        name[0].lower() + name[1:]: sum(len(list(files_of(diff))) for diff in blocks("diff", text))
        for name, text in SECTIONS.items()
    }
    assert told == touched and len(told) == 5


@pytest.mark.slow
def test_every_example_works(copy: Path, tmp_path: Path) -> None:
    """One interpreter for all five, which begins with a look that it is the copy that runs."""
    script = f"import espalier\nassert espalier.__file__.startswith({str(copy)!r})\n"
    for name, section in SECTIONS.items():
        (code,) = blocks("python", section)
        script += f"print({name!r}, flush=True)\n{code}\n"
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert [line for line in done.stdout.splitlines() if line in SECTIONS] == list(SECTIONS)


@pytest.mark.parametrize(
    "tool", [["ruff", "format", "--check"], ["ruff", "check"], ["lint-imports"]], ids=" ".join
)
def test_every_example_passes_the_checks(tool: list[str], copy: Path) -> None:
    program = Path(sys.executable).parent / tool[0]
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    words = [str(program), *tool[1:], *(["src"] if tool[0] == "ruff" else [])]
    done = subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
