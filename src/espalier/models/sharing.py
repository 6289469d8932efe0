"""Frozen weights that several models have alike are held once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

_WRAPPERS = ("base_model.model.", "base_layer.")
"""What PEFT puts into the names of the weights that it stands on."""


def share_frozen(*models: nn.Module | None) -> int:
    """Let every model hold the frozen weights of the models before it, where its own are the same to the last bit.

    No number changes: a weight is shared only where no model trains it, and neither its type nor its place differ.

    Args:
        models: such as policy, critic, reference and reward model; a None is passed over.

    Returns:
        The bytes that are held once instead of twice.
    """
    held: dict[str, list[nn.Parameter]] = {}
    saved = 0
    for model in models:
        if model is None:
            continue
        mine: dict[str, nn.Parameter] = {}
        replaced: dict[int, nn.Parameter] = {}
        for name, owner, key, parameter in _weights(model):
            if id(parameter) in replaced:
                owner._parameters[key] = replaced[id(parameter)]
                continue
            if parameter.requires_grad or not parameter.numel():
                continue
            other = next((p for p in held.get(name, ()) if p is not parameter and _same(p, parameter)), None)
            if other is None:
                mine[name] = parameter
            else:
                owner._parameters[key] = replaced[id(parameter)] = other
                saved += parameter.numel() * parameter.element_size()
        for name, parameter in mine.items():
            held.setdefault(name, []).append(parameter)
    return saved


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """(name without wrappers, module, name in it, parameter), tied ones as often as they stand there."""
    for path, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module._parameters.items():
            if parameter is not None:
                name = f"{path}.{key}".removeprefix("lm.")
                for wrapper in _WRAPPERS:
                    name = name.replace(wrapper, "")
                yield name, module, key, parameter


def _same(one: nn.Parameter, other: nn.Parameter) -> bool:
    """Whether two frozen weights are one: their bits, and how these are read where they are few."""
    if (
        one.requires_grad
        or one.shape != other.shape
        or one.dtype != other.dtype
        or one.device != other.device
    ):
        return False
    if type(one) is not type(other) or not torch.equal(one.data, other.data):
        return False
    mine, theirs = (getattr(getattr(p, "quant_state", None), "absmax", None) for p in (one, other))
    if mine is None or theirs is None:
        return mine is theirs
    return torch.equal(mine, theirs)


def held_bytes(*models: nn.Module | None) -> int:
    """Bytes of all weights of these models, each once however many of them hold it."""
    distinct = {id(p): p for model in models if model is not None for p in model.parameters()}
    return sum(parameter.numel() * parameter.element_size() for parameter in distinct.values())


def lacks_base(model: nn.Module, base: nn.Module) -> str | None:
    """The name of the first frozen matrix of `model` that is not also one of `base`; None: it stands on the same base.

    Adapters are no part of a base, nor are vectors.
    """
    known = {id(parameter) for parameter in base.parameters()}
    for name, _, _, parameter in _weights(model):
        is_base = not any(mark in name for mark in (".lora_", ".ia3_", "scalar_head."))
        if is_base and parameter.dim() > 1 and not parameter.requires_grad and id(parameter) not in known:
            return name
    return None
