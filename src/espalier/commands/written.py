"""A file of options that a command writes for the user to read, edit and run."""

from __future__ import annotations

from pathlib import Path

from espalier.disk.writing import write_text, writing_to
from espalier.errors import UserError


def check_free(path: Path) -> None:
    """Raises UserError where the file exists already or is not named as YAML."""
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {path}: wanted a name that ends in .yaml.")
    if path.exists():
        raise UserError(f"{path}: exists. Choose another name with --out, or remove it.")


def write_new(path: Path, text: str) -> None:
    """Write it; `check_free` comes before."""
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
