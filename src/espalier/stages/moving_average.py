"""A moving average of a policy's weights, beside it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from espalier.engine.whole import is_cut, whole_parameters
from espalier.models.forward import TreeModel
from espalier.stages.parts import Live


class MovingAverage:
    """An exponential moving average of a policy's weights, kept beside it."""

    def __init__(self, policy: TreeModel, decay: float) -> None:
        self.model = copy.deepcopy(policy).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, live: Live, policy: TreeModel) -> None:
        """After a step; all ranks call it, for the policy may be cut over them."""
        now: dict[str, Tensor] = dict(policy.named_parameters())
        if any(is_cut(parameter) for parameter in now.values()):
            prefix = next(n for n, m in live.inner.named_modules() if m is policy) + "."
            whole = whole_parameters(live.accelerator, live.module)
            now = {n.removeprefix(prefix): t for n, t in whole.items() if n.startswith(prefix)}
        for name, kept in self.model.named_parameters():
            if name in now:
                kept.lerp_(now[name].to(kept), 1 - self._decay)
