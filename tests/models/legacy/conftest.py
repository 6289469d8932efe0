"""The golden checkpoints: inputs and outputs that the original code wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FAMILIES = (
    "aquila",
    "baichuan_7b",
    "baichuan_13b",
    "baichuan2_7b",
    "baichuan2_13b",
    "chatglm",
    "chatglm2",
    "glm",
    "internlm",
    "moss",
    "pangu",
    "qwen",
    "qwen_v0",
    "xverse",
)


@dataclass(frozen=True)
class Case:
    """One case of a golden.json: what to hand to the model, and what it gave."""

    name: str
    kind: str
    inputs: dict[str, Tensor]
    arrays: dict[str, Tensor]
    loss: float | None
    max_new_tokens: int


def cases(folder: Path) -> Iterator[Case]:
    """The cases of a golden folder."""
    held = np.load(folder / "golden.npz")

    def tensor(key: Any) -> Tensor:
        return torch.from_numpy(held[key])

    for case in json.loads((folder / "golden.json").read_text("utf-8"))["cases"]:
        names = ("logits", "labels", "compare_mask", "new_tokens", "step_logits")
        arrays = {name: tensor(case[name]) for name in names if name in case}
        loss = case.get("loss")
        yield Case(
            case["name"],
            case["type"],
            {name: tensor(key) for name, key in case["inputs"].items()},
            arrays,
            float(held[loss]) if isinstance(loss, str) else loss,
            case.get("max_new_tokens", 0),
        )
