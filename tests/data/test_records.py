"""The filled examples of the docstrings are true."""

from __future__ import annotations

import doctest

import pytest

from espalier.data import records, sources, templates


@pytest.mark.parametrize("module", [records, sources, templates], ids=lambda module: module.__name__)
def test_the_docstrings_examples_hold(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
