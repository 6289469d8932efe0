"""Weights that are no numbers are found wherever they are, and named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from espalier.engine.finite import broken_tensors, cause, check_weights
from espalier.errors import UserError


def test_broken_weights_are_counted_by_name() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    assert broken_tensors(dict(module.named_parameters())) == {}
    check_weights(dict(module.named_parameters()), 4)
    with torch.no_grad():
        module[1].weight[1] = torch.inf
        module[0].bias[:] = torch.nan
    assert broken_tensors(dict(module.named_parameters())) == {"0.bias": 2, "1.weight": 1}
    with pytest.raises(UserError, match=r"step 4: .*\(2 in 0\.bias and 1 more tensor\)"):
        check_weights(dict(module.named_parameters()), 4)
    assert "2 in 0.bias" in cause(module)
    assert broken_tensors({"ids": torch.tensor([1, 2])}) == {}
