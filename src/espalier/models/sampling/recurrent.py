"""Sampling from a model with a state in place of keys and values (RWKV).

Padding would enter the state, so each prompt is read alone. The rows stay alone after it too: with a state,
transformers (5.23) mixes each row of a batch with the states of all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def is_recurrent(lm: nn.Module) -> bool:
    """Whether transformers gives this architecture a `state`."""
    config: Any = lm.config
    return bool(config.model_type == "rwkv")


class Recurrent:
    """The prompts' states, one a row, and the steps from them.

    Rows run alone, so that a batch that stays full would gain nothing: no rows come in the place of others.

    Args:
        lm: an RWKV.
        prompts: token ids, none empty.
        copies: answers a prompt.
    """

    def __init__(self, lm: nn.Module, prompts: Sequence[Sequence[int]], copies: int) -> None:
        self.lm, self.prompts, self.copies = lm, prompts, copies
        self.states: list[list[Tensor]] = []

    def prompt_logits(self) -> Tensor:
        """(P * C, V)."""
        device = next(self.lm.parameters()).device
        logits = []
        for prompt in self.prompts:
            out: Any = self.lm(input_ids=torch.tensor([list(prompt)], device=device), use_cache=True)
            # a step writes into the state that it is given
            self.states += [[part.clone() for part in out.state] for _ in range(self.copies)]
            logits += [out.logits[:, -1]] * self.copies
        return torch.cat(logits)

    def next_logits(self, tokens: Tensor, step: int) -> Tensor:
        """(B, V) after one more token a row."""
        logits = []
        for row, token in enumerate(tokens):
            out: Any = self.lm(input_ids=token.view(1, 1), state=self.states[row], use_cache=True)
            self.states[row] = out.state
            logits.append(out.logits[:, -1])
        return torch.cat(logits)

    def keep(self, rows: Tensor) -> bool:
        """Go on with these rows (B',) alone."""
        self.states = [self.states[row] for row in rows.tolist()]
        return True
