"""Input embeddings and head that share one matrix: apart while an adapter is merged into one of them.

An adapter that changes the embeddings or the head of a model where both are one tensor changes, as long as it is
on top, only the one that it was put on. Merged into the shared tensor it would change both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def untie(lm: nn.Module) -> bool:
    """Give the head a tensor of its own where it shares the embeddings'; returns whether it did.

    `lm` may have an adapter on its embeddings or head; what lies below it is meant.
    """
    inputs, head = _below(lm.get_input_embeddings()), _below(lm.get_output_embeddings())  # type: ignore[operator]
    if inputs is None or head is None or inputs.weight is not head.weight:
        return False
    head.weight = nn.Parameter(inputs.weight.detach().clone(), inputs.weight.requires_grad)
    _declare(lm, tied=False)
    return True


def tie_again(lm: nn.Module) -> bool:
    """Undo `untie` where both are still equal; returns whether they are."""
    inputs, head = lm.get_input_embeddings(), lm.get_output_embeddings()  # type: ignore[operator]
    if inputs.weight.shape != head.weight.shape or not torch.equal(inputs.weight, head.weight):
        return False
    _declare(lm, tied=True)
    lm.tie_weights()  # type: ignore[operator]
    return True


def _declare(lm: nn.Module, *, tied: bool) -> None:
    """What is saved and loaded again follows the configuration and this table of names."""
    config: Any = lm.config
    config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = tied
    for module in lm.modules():
        if isinstance(module, nn.Module) and "all_tied_weights_keys" in vars(module):
            own: Any = module
            own.all_tied_weights_keys = (
                own.get_expanded_tied_weights_keys(all_submodels=False) if tied else {}
            )


def _below(module: Any) -> Any:
    """The layer below an adapter's."""
    if module is None:
        return None
    if type(module).__module__.startswith("peft."):
        return module.original_module if "original_module" in module._modules else module.get_base_layer()
    return module
