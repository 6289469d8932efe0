"""What a forward keeps for its backward, counted and not guessed: the model runs once on tensors without content.

Fake tensors have shapes, types and storages, and no memory; what autograd saves of them is what it would save of real
ones. Casts of weights by autocast are saved, too, and do not grow with the batch, so two sizes tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward keeps.

    Attributes:
        row: of one row of tokens, through all layers.
        casts: of weights in 16 bits beside those in 32, whatever the batch.
        counted: whether they were counted; else they are Korthikanti et al.'s (2022, eq. 2) without attention's matrix.
    """

    row: int
    casts: int
    counted: bool = True


def activations(
    lm: nn.Module, length: int, bits: int, *, mixed: bool = True, dropout: bool = False
) -> Activations:
    """What a forward of `lm` keeps for rows of `length` tokens; the logits of the head are not among it.

    Args:
        lm: may stand on torch's meta device; nothing of it is read or changed.
        length: tokens of a row.
        bits: 32 or 16, of the products.
        mixed: whether 16-bit products are made from weights in 32 bits (autocast); else the weights have 16 themselves.
        dropout: whether the model's own dropout is on, which Espalier's training never has.
    """
    try:
        one, two = (_saved(lm, rows, length, bits, mixed, dropout) for rows in (1, 2))
    except Exception:  # what a foreign forward asks of its tensors' content cannot be foreseen
        return Activations(_by_formula(lm, length, bits), 0, counted=False)
    return Activations(two - one, max(0, 2 * one - two))


def _saved(lm: nn.Module, rows: int, length: int, bits: int, mixed: bool, dropout: bool) -> int:
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # so that no storage is freed and its number given to another
    training = lm.training
    with FakeTensorMode(allow_non_fake_inputs=True):
        kind = torch.float32 if bits == 32 or mixed else torch.bfloat16
        state = {name: _fake(tensor, kind) for name, tensor in [*lm.named_parameters(), *lm.named_buffers()]}
        own = {tensor.untyped_storage()._cdata for tensor in state.values()}
        ids = torch.zeros(rows, length, dtype=torch.int64)
        given: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if getattr(lm.config, "is_encoder_decoder", False):
            given["decoder_input_ids"] = ids

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                sizes[storage._cdata] = storage.nbytes()
                held.append(tensor)
            return tensor

        lm.train(dropout)
        try:
            with (
                saved_tensors_hooks(keep, lambda tensor: tensor),
                torch.autocast("cpu", torch.bfloat16, enabled=bits == 16 and mixed),
            ):
                functional_call(lm, state, (), given)
        finally:
            lm.train(training)
    return sum(sizes.values())


def _fake(tensor: Tensor, kind: torch.dtype) -> Tensor:
    dtype = kind if tensor.is_floating_point() else tensor.dtype
    made = torch.empty(tensor.shape, dtype=dtype, device="cpu")
    return made.requires_grad_(isinstance(tensor, nn.Parameter) and tensor.is_floating_point())


def _by_formula(lm: nn.Module, length: int, bits: int) -> int:
    config: Any = lm.config
    config = config.get_text_config()
    width = int(getattr(config, "hidden_size", 0) or 0)
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    return 34 * length * width * layers * bits // 16
