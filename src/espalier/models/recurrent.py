"""Sampling from a model with a state in place of keys and values (RWKV).

Padding would enter the state, so each prompt is read alone; from there on all rows go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def is_recurrent(lm: nn.Module) -> bool:
    """Whether transformers gives this architecture a `state`."""
    config: Any = lm.config
    return config.model_type == "rwkv"


class Recurrent:
    """The prompts' states, one a row, and the steps from them.

    Args:
        lm: an RWKV.
        prompts: token ids, none empty.
        copies: answers a prompt.
    """

    def __init__(self, lm: nn.Module, prompts: Sequence[Sequence[int]], copies: int) -> None:
        self.lm, self.prompts, self.copies = lm, prompts, copies
        self.state: list[Tensor] = []

    def prompt_logits(self) -> Tensor:
        """(P * C, V)."""
        device = next(self.lm.parameters()).device
        found = [
            self.lm(input_ids=torch.tensor([list(prompt)], device=device), use_cache=True)
            for prompt in self.prompts
        ]
        parts = zip(*(out.state for out in found), strict=True)
        self.state = [torch.cat(part).repeat_interleave(self.copies, 0) for part in parts]
        return torch.cat([out.logits[:, -1] for out in found]).repeat_interleave(self.copies, 0)

    def next_logits(self, tokens: Tensor, step: int) -> Tensor:
        """(B, V) after one more token a row."""
        out: Any = self.lm(input_ids=tokens[:, None], state=self.state, use_cache=True)
        self.state = out.state
        return out.logits[:, -1]

    def keep(self, rows: Tensor) -> bool:
        """Go on with these rows (B',) alone."""
        self.state = [part[rows.to(part.device)] for part in self.state]
        return True
