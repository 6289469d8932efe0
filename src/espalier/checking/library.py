"""Optional libraries, imported where they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from espalier.errors import UserError


def library(name: str, package: str, *, extra: str = "exams") -> Any:
    """A module of an optional library.

    Raises:
        UserError: it is not installed; names the extra of Espalier that brings it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{package} is needed here and is not installed: pip install 'espalier-llm[{extra}]'."
        ) from error
