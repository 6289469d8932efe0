"""Shared ways to prepare a corpus and to read what came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def by_score() -> Any:
    """{score: [answers]} of a ranking row."""

    def grouped(row: dict[str, Any]) -> dict[float, list[str]]:
        found: dict[float, list[str]] = {}
        for answer in row["answers"]:
            found.setdefault(answer["score"], []).append(answer["answer"])
        return found

    return grouped
