"""The filled examples of the docstrings are true."""

from __future__ import annotations

import doctest

import pytest

from espalier.data import dataset_info, made, mixing, named_templates, pieces, records, specs
from espalier.data.clean import minhash, personal, quality, shingles, view
from espalier.data.prepare import books, news, output, poetry, shape, shelf

MODULES = [
    dataset_info,
    mixing,
    named_templates,
    pieces,
    records,
    specs,
    minhash,
    personal,
    quality,
    shingles,
    view,
]
MODULES += [books, made, news, output, poetry, shape, shelf]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_docstrings_examples_hold(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
