"""What a user must install is what the package imports; what is optional is an extra that a message can name."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
IMPORTED_AS = {"pyyaml": "yaml"}


def imported() -> set[str]:
    """The top names of all imports in the package, wherever they stand."""
    found = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    return found


def test_every_dependency_is_imported() -> None:
    names = {re.split(r"[<>=!~\[; ]", line)[0] for line in PROJECT["dependencies"]}
    used = imported()
    assert {name for name in names if IMPORTED_AS.get(name, name) not in used} == set()
    assert "torch" in names


def test_extras_that_messages_name_exist() -> None:
    named = set()
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").glob("*.md")]:
        named |= set(re.findall(r"espalier-llm\[([a-z-]+)\]", file.read_text("utf-8")))
    assert "deepspeed" in named and named <= set(PROJECT["optional-dependencies"])
    trackers = {"tensorboard", "wandb", "swanlab"}
    assert trackers <= set(PROJECT["optional-dependencies"])
