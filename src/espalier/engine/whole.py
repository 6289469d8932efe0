"""Whole tensors out of whatever a strategy has made of a module and its optimiser, and back into it.

By them a checkpoint of one strategy and number of processes can be continued under any other.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from espalier.engine import fsdp, zero

MOMENTS = ("exp_avg", "exp_avg_sq")
"""States of a parameter's own shape."""


def named_trainable(accelerator: Accelerator, module: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by the names that they have without any wrapper."""
    return {name: p for name, p in _named(accelerator, module).items() if p.requires_grad}


def _named(accelerator: Accelerator, module: nn.Module) -> dict[str, nn.Parameter]:
    inner = accelerator.unwrap_model(module, keep_torch_compile=False)
    return dict(inner.named_parameters())


def whole_parameters(accelerator: Accelerator, module: nn.Module) -> dict[str, Tensor]:
    """Every trainable parameter in full, in float32 where a master copy exists; on all ranks alike, on the CPU."""
    return {name: _whole(module, p) for name, p in named_trainable(accelerator, module).items()}


def whole_model(accelerator: Accelerator, module: nn.Module) -> dict[str, Tensor]:
    """The same with the frozen parameters that no rank holds whole."""
    return {
        name: _whole(module, p)
        for name, p in _named(accelerator, module).items()
        if p.requires_grad or is_cut(p)
    }


def is_cut(parameter: Tensor) -> bool:
    """Whether a parameter is only in part on this rank."""
    return hasattr(parameter, "ds_id") or fsdp.local(parameter) is not parameter


def _whole(module: nn.Module, parameter: nn.Parameter) -> Tensor:
    if zero.is_zero(module):
        return zero.whole_parameter(module, parameter).detach().cpu().clone()
    return fsdp.whole(parameter.detach()).cpu().clone()


def set_parameters(accelerator: Accelerator, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put whole tensors back into the parameters, sharded or not."""
    for name, parameter in named_trainable(accelerator, module).items():
        if zero.is_zero(module):
            zero.set_parameter(module, parameter, tensors[name])
            continue
        with torch.no_grad():
            parameter.copy_(fsdp.like(tensors[name], parameter))


def whole_moments(
    accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The optimiser's state by ``PARAMETER.KEY`` (AdamW's keys: exp_avg, exp_avg_sq, step), in full on all ranks."""
    states: dict[str, Tensor] = {}
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    for name, parameter in named_trainable(accelerator, module).items():
        if zero.is_zero(module):
            moments: dict[str, Any] = {key: zero.whole_moment(module, parameter, key) for key in MOMENTS}
            moments["step"] = zero.steps_taken(module)
        else:
            moments = dict(inner.state.get(parameter, {}))
        numbers = {key: torch.as_tensor(value) for key, value in moments.items() if value is not None}
        states.update({f"{name}.{key}": fsdp.whole(t.detach()).cpu().clone() for key, t in numbers.items()})
    return states


def set_moments(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    step: int,
) -> None:
    """The inverse of `whole_moments`; `step` is how often the optimiser has stepped where `tensors` do not say it."""
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition(".")
        states.setdefault(parameter_name, {})[key] = tensor
    counts = [state["step"] for state in states.values() if "step" in state]
    steps = max(counts, key=float) if counts else torch.tensor(float(step))
    for name, parameter in named_trainable(accelerator, module).items():
        state = states.get(name, {})
        if zero.is_zero(module):
            for key in MOMENTS if states else ():
                zero.set_moment(module, parameter, key, state.get(key))
        elif state:
            # ZeRO of earlier versions did not write the count, and AdamW cannot go on without.
            inner.state[parameter] = {
                key: _placed(key, tensor, parameter) for key, tensor in ({"step": steps} | state).items()
            }
    if zero.is_zero(module) and states:
        zero.set_steps_taken(module, steps)


def _placed(key: str, tensor: Tensor, parameter: nn.Parameter) -> Any:
    if key in MOMENTS:
        return fsdp.like(tensor, parameter)
    if tensor.dtype == torch.int64:
        return tensor.item()  # Adafactor and bitsandbytes count in Python
    return tensor.to(parameter.device, copy=True)
