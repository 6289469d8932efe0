"""Plain computations and small helpers that the tests of converted checkpoints share."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import espalier
from espalier.models.convert import convert_folder

IDS = torch.tensor([[5, 17, 3, 60, 22, 41, 9, 33, 12, 50, 7, 28, 19]])
TOLERANCE = 2e-5

State = dict[str, Tensor]


def write(folder: Path, config: dict[str, Any], state: State) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: t.clone().contiguous() for name, t in state.items()}, folder / "model.safetensors")
    return folder


def rand(*shape: int, std: float = 0.15) -> Tensor:
    return torch.randn(*shape) * std


def both(folder: Path, tmp_path: Path) -> list[Any]:
    """The model as loaded, and as converted and loaded again."""
    convert_folder(folder, tmp_path / "plain")
    return [espalier.load_model(str(f), device="cpu")[0] for f in (folder, tmp_path / "plain")]


@torch.no_grad()
def check(
    folder: Path, tmp_path: Path, expected: Tensor, ids: Tensor = IDS, tolerance: float = TOLERANCE
) -> Any:
    for model in both(folder, tmp_path):
        found = model(input_ids=ids).logits
        assert (found - expected).abs().max() < tolerance
        new = model.generate(
            ids, max_new_tokens=1, do_sample=False, pad_token_id=0, eos_token_id=None, use_cache=True
        )
        assert int(new[0, -1]) == int(expected[0, -1].argmax())
    return model


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """(H, T, D) each, causal, by the book."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
