"""What libraries say on their own account is kept from a user's screen; what we have to say is one plain line.

Two steps, because two kinds of user: `quiet_loggers` is for everyone and only sets levels of other libraries' loggers
that nobody has set. `show_only_ours` is for the command line, which owns its process: Python's warnings but our own
are dropped, and logging without a handler shows errors alone. ``PYTHONWARNINGS=default`` shows all warnings again.
"""

from __future__ import annotations

import importlib.abc
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TextIO

from espalier.errors import Notice
from espalier.screen import Screen

LIBRARIES = (
    "bitsandbytes",
    "transformers",
    "peft",
    "torchao",
    "accelerate",
    "DeepSpeed",
    "datasets",
    "kernels",
)
"""Loggers that warn at import, or of what is settled here, such as a kernel that this processor has no build of."""


def quiet_loggers() -> None:
    """Errors alone from the libraries, before any of them is imported and speaks."""
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)


def quiet_again(name: str) -> None:
    """The same for a library that has set its logger's level itself when it was imported."""
    logger = logging.getLogger(name)
    logger.setLevel(max(logger.level, logging.ERROR))


def show_only_ours() -> None:
    """For a process of our own: our notices as lines, errors of libraries, and nothing else."""
    quiet_loggers()
    handler = logging.StreamHandler()
    handler.setLevel(logging.ERROR)
    logging.getLogger().addHandler(handler)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=Notice)
    warnings.showwarning = _shown


class _Announcer(importlib.abc.MetaPathFinder):
    """Stands before the finders of modules, sees the first import that is slow, says so, and steps aside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torch":
            sys.meta_path.remove(self)
            Screen(stderr=True).say("loading torch and transformers …", "dim")
        return None


def announce_slow_imports() -> None:
    """On a terminal, one line before the seconds that torch takes; nothing where it is not needed."""
    if sys.stderr.isatty() and "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        sys.meta_path.insert(0, _Announcer())


def _shown(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One plain line of ours, told by the first of several processes; another's as Python writes it."""
    if os.environ.get("RANK", "0") != "0":
        return
    place: dict[str, Any] = {} if file is None else {"file": file}
    text = str(message)
    if not issubclass(category, Notice):
        text = warnings.formatwarning(message, category, filename, lineno, line).rstrip()
    Screen(stderr=True, **place).say(f"note: {text}" if issubclass(category, Notice) else text, "yellow")
