"""Options as people type them behind a command (`--learning_rate 3`, `--skip-bad`) -> `key=value` words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from espalier.errors import UserError

_ASSIGNMENT = re.compile(r"[\w.-]+=")
_FILES = (".yaml", ".yml")


def file_and_overrides(words: Sequence[str]) -> tuple[str, list[str]]:
    """The YAML file and the `key=value` words among all the words behind a command.

    ``--key value``, ``--key=value`` and ``key=value`` are the same; ``--key`` without a value is ``key=true``; dashes in
    a key are underscores.

    >>> file_and_overrides(["sft.yaml", "--learning-rate", "3e-4", "--skip-bad", "seed=1"])
    ('sft.yaml', ['learning_rate=3e-4', 'skip_bad=true', 'seed=1'])

    Raises:
        UserError: no file is among them.
    """
    files: list[str] = []
    overrides: list[str] = []
    waiting: str | None = None
    for word in words:
        is_file = not files and word.endswith(_FILES)
        if waiting is not None and (word.startswith("--") or _ASSIGNMENT.match(word) or is_file):
            overrides.append(f"{waiting}=true")
            waiting = None
        if waiting is not None:
            overrides.append(f"{waiting}={word}")
            waiting = None
        elif word.startswith("--"):
            key, equals, value = word.partition("=")
            if equals:
                overrides.append(f"{_key(key)}={value}")
            else:
                waiting = _key(key)
        elif not files and not _ASSIGNMENT.match(word):
            files.append(word)
        else:
            overrides.append(word)
    if waiting is not None:
        overrides.append(f"{waiting}=true")
    if not files:
        raise UserError("no FILE.yaml is given; wanted espalier run FILE.yaml [key=value ...].")
    return files[0], overrides


def _key(word: str) -> str:
    """The key of ``--key``; the name of a stage before a dot keeps its dashes."""
    stage, dot, key = word.removeprefix("--").rpartition(".")
    return stage + dot + key.replace("-", "_")
