"""LoRA that begins as the largest singular vectors of each weight (PiSSA, Meng, Wang & Zhang 2024), saved as plain LoRA.

PEFT takes s B0 A0, the part of the weight W that the first matrices hold, out of the frozen weight, so that step 0 says
what the base says, and what is saved fits no base that anybody has. Written by the base that everybody has, what was
learned is W + s (B A - B0 A0): LoRA of twice the rank, with B and -B0 side by side and A over A0 (there, section 5).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_A, _B = ".lora_A.", ".lora_B."


def initialisation(iterations: int) -> str:
    """PEFT's name for it.

    Args:
        iterations: of the fast decomposition (Halko et al. 2011), at least 1; -1 is the exact one.
    """
    return "pissa" if iterations < 0 else f"pissa_niter_{iterations}"


def remember_start(lm: nn.Module) -> None:
    """Keep the first matrices of a model whose LoRA has just been made so; `in_terms_of_base` needs them."""
    own: Any = lm
    own.first_lora = {n: p.detach().clone() for n, p in lm.named_parameters() if _A in n or _B in n}


def in_terms_of_base(lm: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """What is saved of such a model: the state with matrices of twice the rank; None of any other model.

    Args:
        state: of the whole model, by its names; A is (r, in) and becomes (2r, in), B (out, r) becomes (out, 2r).
    """
    first: dict[str, Tensor] = vars(lm).get("first_lora", {})
    if not first:
        return None
    return state | {
        name: torch.cat([state[name], began.to(state[name])], 0)
        if _A in name
        else torch.cat([state[name], -began.to(state[name])], 1)
        for name, began in first.items()
    }


def say_plain(file: Path) -> None:
    """The settings of an adapter of twice the rank: its scale stays, and its start is that of any LoRA."""
    settings = json.loads(file.read_text("utf-8"))
    # The scale is alpha / r, or alpha / sqrt(r) (rslora).
    settings["lora_alpha"] *= 2**0.5 if settings.get("use_rslora") else 2
    settings["r"], settings["init_lora_weights"] = 2 * settings["r"], True
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), "utf-8")
