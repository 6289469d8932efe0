"""The numbers by hand in the docstrings hold, and the room stays light."""

from __future__ import annotations

import doctest
import importlib
import inspect
import subprocess
import sys

import pytest

MODULES = ["reduce", "losses", "advantages", "metrics"]


@pytest.mark.parametrize("name", MODULES)
def test_numbers_by_hand(name: str) -> None:
    module = importlib.import_module(f"espalier.maths.{name}")
    result = doctest.testmod(module)
    public = [f for f, v in inspect.getmembers(module, inspect.isfunction) if v.__module__ == module.__name__]
    assert result.failed == 0
    assert result.attempted >= len([f for f in public if not f.startswith("_")])


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_shows_a_number(name: str) -> None:
    module = importlib.import_module(f"espalier.maths.{name}")
    for function_name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__ and not function_name.startswith("_"):
            assert ">>>" in (function.__doc__ or ""), function_name


@pytest.mark.slow
def test_imports_torch_and_nothing_heavy() -> None:
    code = "; ".join(f"import espalier.maths.{name}" for name in MODULES) + (
        "; import sys; heavy = {'transformers', 'accelerate', 'datasets', 'peft', 'trl'} & set(sys.modules)"
        "; ours = {m for m in sys.modules if m.startswith('espalier.') and not m.startswith('espalier.maths')}"
        "; print(sorted(heavy | ours))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
