"""A model in memory to few bits and back."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from espalier.errors import UserError
from espalier.models.positions.rope_modules import put_in_place
from espalier.models.quantise.cpm_linear import CpmLinear
from espalier.models.quantise.methods import Quantisation, settings


def is_quantised(lm: nn.Module) -> bool:
    """Whether transformers has loaded the model with quantised weights; adapters on top make no difference."""
    config: Any = lm.config
    return config.to_dict().get("quantization_config") is not None


def quantised(lm: nn.Module, wanted: Quantisation) -> nn.Module:
    """A plain model with its linear layers stored in few bits; both are in memory for a while.

    Raises:
        UserError: it is quantised already, or the method cannot do it.
    """
    if is_quantised(lm):
        raise UserError("The model is quantised already; quantise the one that it was made from.")
    old: Any = lm
    made: Any = type(old).from_pretrained(
        None,
        config=copy.deepcopy(old.config),
        state_dict=old.state_dict(),
        dtype=next(old.parameters()).dtype,
        quantization_config=settings(wanted),
    )
    check_quantised(made, wanted)
    small: nn.Module = _named_like(never_packed(made), old)
    return small.eval()


def check_quantised(lm: nn.Module, wanted: Quantisation) -> None:
    """Whether a method could store this model's layers: some pass over those that they do not know, or break them.

    Raises:
        UserError: it could not.
    """
    stored = [module for module in lm.modules() if is_quantised_layer(module)]
    broken = wanted.method == "torchao" and any(type(module) is not nn.Linear for module in stored)
    if broken or not stored:
        raise UserError(
            f"{wanted.method} cannot store {type(lm).__name__} in {wanted.bits} bits: its layers are not torch's own linear "
            "ones. Take cpm, which knows them."
        )


def dequantised(lm: nn.Module) -> nn.Module:
    """The plain float32 model that a quantised one stands for, layer for layer as its architecture is written.

    A model that is not quantised is handed back as it is.

    Raises:
        UserError: it was quantised by a method that cannot be turned back.
    """
    if not is_quantised(lm):
        return lm
    old: Any = lm
    config = copy.deepcopy(old.config)
    del config.quantization_config
    with torch.device("meta"):
        skeleton = type(old)(config)
    state: dict[str, Tensor] = {}
    for name, module in old.named_modules():
        prefix = name + "." if name else ""
        if is_quantised_layer(module):
            weight = weight_of(module)
            # Quantised layers are Linear even where the architecture has a Conv1D, whose weight lies the other way.
            turned = isinstance(skeleton.get_submodule(name), Conv1D)
            state[prefix + "weight"] = (weight.t() if turned else weight).contiguous()
            if module.bias is not None:
                state[prefix + "bias"] = module.bias.detach().float()
            continue
        tensors = {**module._parameters, **module._buffers}
        for key, tensor in tensors.items():
            if tensor is not None and key not in module._non_persistent_buffers_set:
                state[prefix + key] = tensor.detach()
    made: Any = type(old).from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    plain: nn.Module = _named_like(made, old)
    return plain.train(old.training)


def _named_like(made: Any, old: Any) -> Any:
    """With the name that adapters remember their base by, and what the folder says of generation."""
    made.name_or_path = made.config.name_or_path = old.name_or_path
    made.generation_config = old.generation_config
    return put_in_place(made)


def is_quantised_layer(module: nn.Module) -> bool:
    if isinstance(module, CpmLinear) or _is_bnb(module):
        return True
    # Other libraries' layers hold their weight in tensors of other names, torchao in a tensor of its own type.
    return isinstance(module, nn.Linear) and type(module.weight).__module__.startswith("torchao.")


def _is_bnb(module: nn.Module) -> bool:
    """Whether it is a layer of bitsandbytes; PEFT has wrappers of the same names."""
    return type(module).__module__.startswith("bitsandbytes.") and isinstance(module, nn.Linear)


def weight_of(module: Any) -> Tensor:
    """The weights (out_features, in_features) in float32 that a quantised layer stands for."""
    if isinstance(module, CpmLinear):
        return module.weight
    if _is_bnb(module):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        weight: Tensor = dequantize_bnb_weight(module.weight, getattr(module, "state", None))
        return weight.detach().float()
    if type(module.weight).__module__.startswith("torchao."):
        plain: Tensor = module.weight.dequantize()
        return plain.detach().float()
    raise UserError(f"Weights of {type(module).__name__} cannot be turned back into floats.")


def never_packed(lm: nn.Module) -> nn.Module:
    """The model with bitsandbytes' layers kept as they are saved, on every CPU.

    On a CPU with AVX512-BF16 its 4-bit layers rearrange their weights at the first forward in evaluation mode. The
    product of rearranged weights has no backward and is rounded to bf16, so that whatever is trained below such a layer
    gets wrong gradients; and the rearrangement fails for layers whose rows do not fill its blocks of 32.
    """
    for module in lm.modules():
        if _is_bnb(module) and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return lm


def number_of_weights(module: nn.Module) -> int:
    """How many numbers a model is made of, however they are stored; tied ones count once."""
    total = sum(p.numel() for p in module.parameters())
    for part in module.modules():
        if isinstance(part, CpmLinear):
            total += part.in_features * part.out_features
        elif _is_bnb(part) and part.weight.dtype == torch.uint8:
            weight: Any = part.weight
            total += part.in_features * part.out_features - weight.numel()  # type: ignore[operator]
    return total
