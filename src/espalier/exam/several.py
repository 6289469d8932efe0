"""Several models on the same exams: each examined as if alone, then compared question by question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espalier.engine import files
from espalier.errors import UserError
from espalier.exam.evaluate import Asking, evaluate
from espalier.exam.numbers.compare import compare, comparison_table
from espalier.exam.tasks import Settings
from espalier.screen import Screen


def evaluate_several(
    models: Sequence[str],
    tasks: Sequence[str],
    *,
    out: Path,
    settings: Settings,
    shots: Sequence[int | None],
    asking: Asking,
) -> dict[str, Any]:
    """One model: its results, in `out`. Several: a folder each below `out`, and ``compare.json``.

    Raises:
        UserError: two models are one and the same, or one cannot be read.
    """
    if len(set(models)) < len(models):
        raise UserError("the same model is named twice; a comparison with itself says nothing.")
    if len(models) == 1:
        return evaluate(models[0], tasks, out=out, settings=settings, shots=shots, asking=asking)
    folders = _folders(models)
    every = {
        folder: evaluate(model, tasks, out=out / folder, settings=settings, shots=shots, asking=asking)
        for model, folder in zip(models, folders, strict=True)
    }
    pairs = compare(out, every)
    files.write_json(
        out / "compare.json", {"models": dict(zip(folders, models, strict=True)), "pairs": pairs}
    )
    if not asking.quiet:
        Screen().print(comparison_table(pairs))
    return {"models": every, "pairs": pairs}


def _folders(models: Sequence[str]) -> list[str]:
    """A short name of each model that can be a folder's, all different."""
    names = [re.sub(r"[^\w.-]+", "_", "_".join(Path(model).parts[-2:])).strip("_") for model in models]
    return [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]
