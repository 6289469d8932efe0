"""Every example in a docstring holds."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import espalier

SOURCE = Path(espalier.__file__).parent
SHOWN = re.compile(r"^\s*>>> ", re.MULTILINE)
MODULES = sorted(
    ".".join(("espalier", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    for file in SOURCE.rglob("*.py")
    if SHOWN.search(file.read_text("utf-8"))
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0
    # Examples in what testmod does not look at (a function within one, an assigned string) would go unread.
    shown = len(SHOWN.findall(Path(module.__file__ or "").read_text("utf-8")))
    assert result.attempted == shown
