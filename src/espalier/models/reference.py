"""The reference of a policy: the model as it was at step 0.

Where an adapter is trained its start can be put back (`adapters.StepZero`) and no copy is needed; else it is a frozen
copy.
"""

from __future__ import annotations

import copy

from espalier.models.adapters.adapter import is_adapted
from espalier.models.forward import TreeModel


def frozen_copy(policy: TreeModel) -> TreeModel | None:
    """A frozen reference of its own, or None where only an adapter is trained, whose start can be kept."""
    if is_adapted(policy.lm):
        return None
    made = copy.deepcopy(policy)
    made.eval().requires_grad_(False)
    return made
