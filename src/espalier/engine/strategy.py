"""One process, DDP, FSDP or ZeRO: the accelerator, clipping, and whole tensors from whatever is sharded.

This is the one door to accelerate and DeepSpeed for everything that differs between strategies.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from espalier.engine.precision import Precision
from espalier.errors import UserError

if not torch.cuda.is_available():
    # DeepSpeed asks at import, which PEFT and accelerate do for us, and warns when nobody has said.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

_ASKED_BY_LAUNCHER = {
    key: os.environ.get(key)
    for key in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION")
}
"""accelerate keeps what one run has asked for in the environment, where the next one would find it."""

ZERO = {"zero1": 1, "zero2": 2, "zero3": 3}


def make_accelerator(
    strategy: str,
    precision: Precision,
    *,
    max_grad_norm: float,
    offload: str = "none",
    deepspeed: dict[str, Any] | None = None,
    cpu: bool | None = None,
) -> Accelerator:
    """The accelerator of a strategy.

    Args:
        strategy: auto, single, ddp, fsdp, zero1, zero2, zero3; auto is ddp under a launcher.
        precision: of the matrix products.
        max_grad_norm: DeepSpeed clips by itself and must know.
        offload: none, optimizer or all (ZeRO and FSDP only).
        deepspeed: a configuration of one's own; wins over what is built here.
        cpu: stay on the CPU; None = when there is no GPU.

    Raises:
        UserError: DeepSpeed is asked for and not installed.
    """
    cpu = not torch.cuda.is_available() if cpu is None else cpu
    _forget_earlier_runs()
    plugins: dict[str, Any] = {}
    if strategy in ZERO or deepspeed is not None:
        try:
            import deepspeed as _installed  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"strategy: {strategy} needs DeepSpeed. Install it: pip install 'espalier-llm[deepspeed]'"
            ) from error
        config = deepspeed or zero_config(ZERO[strategy], precision, max_grad_norm, offload)
        plugins["deepspeed_plugin"] = DeepSpeedPlugin(hf_ds_config=config)
    elif strategy == "fsdp":
        plugins["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            state_dict_type="FULL_STATE_DICT",
            cpu_offload=offload == "all",
        )
    return Accelerator(cpu=cpu, mixed_precision="no" if precision == "fp32" else precision, **plugins)


def _forget_earlier_runs() -> None:
    """Let this process have another precision and strategy than its last run had.

    accelerate keeps both in one state for the life of the process, and refuses (precision) or ignores (strategy) what
    differs from it. The group of processes stays as it is.
    """
    AcceleratorState._reset_state()
    GradientState._reset_state()
    for key, value in _ASKED_BY_LAUNCHER.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def zero_config(stage: int, precision: Precision, max_grad_norm: float, offload: str) -> dict[str, Any]:
    """A DeepSpeed configuration for an optimiser and a loop of our own (Rajbhandari et al. 2020)."""
    zero: dict[str, Any] = {"stage": stage}
    if offload in ("optimizer", "all"):
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload == "all" and stage == 3:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
    }


def is_deepspeed(accelerator: Accelerator) -> bool:
    return bool(accelerator.distributed_type.value == "DEEPSPEED")


def over_ranks(accelerator: Accelerator, sums: list[float]) -> list[float]:
    """The sums of all ranks, added up in float64; every rank gives as many and gets the same."""
    if accelerator.num_processes == 1:
        return sums
    totals = torch.tensor(sums, dtype=torch.float64, device=accelerator.device)
    total = accelerator.reduce(totals, reduction="sum")
    assert isinstance(total, torch.Tensor)
    return total.tolist()


def clip_gradients(
    accelerator: Accelerator,
    module: nn.Module,
    max_norm: float,
    apart: Sequence[tuple[list[nn.Parameter], float]] = (),
) -> float:
    """Scale the gradients down to `max_norm` (0: leave them) and return the norm before.

    Args:
        apart: parameters that are clipped together, each list to its own norm, in place of all to `max_norm`. DeepSpeed
            does not know them.
    """
    if is_deepspeed(accelerator):  # it has clipped and stepped already, inside the backward
        norm = module.get_global_grad_norm()  # type: ignore[operator]
        return float(norm) if norm is not None else 0.0
    if not apart:
        apart = [([p for p in module.parameters() if p.requires_grad], max_norm)]
    norms = []
    for at, (parameters, limit) in enumerate(apart):
        # The first call undoes fp16's scale of all gradients, and may do so once a step only.
        clip = nn.utils.clip_grad_norm_ if at else accelerator.clip_grad_norm_
        norm = clip(parameters, limit if limit > 0 else math.inf)
        if norm is not None:
            norms.append(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
    return math.hypot(*norms)


def named_trainable(accelerator: Accelerator, module: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by the names that they have without any wrapper."""
    inner = accelerator.unwrap_model(module, keep_torch_compile=False)
    return {name: p for name, p in inner.named_parameters() if p.requires_grad}


def whole_parameters(accelerator: Accelerator, module: nn.Module) -> dict[str, Tensor]:
    """Every trainable parameter in full, in float32 where a master copy exists; on all ranks alike."""
    return {name: _whole(accelerator, p) for name, p in named_trainable(accelerator, module).items()}


def _whole(accelerator: Accelerator, parameter: nn.Parameter) -> Tensor:
    if is_deepspeed(accelerator):
        from deepspeed.utils import safe_get_full_fp32_param

        whole = safe_get_full_fp32_param(parameter)
        return (parameter.detach() if whole is None else whole.detach()).cpu().clone()
    return _full(parameter.detach()).cpu().clone()


def _full(tensor: Tensor) -> Tensor:
    """A sharded tensor in full; a plain one as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def set_parameters(accelerator: Accelerator, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put whole tensors back into the parameters, sharded or not."""
    for name, parameter in named_trainable(accelerator, module).items():
        if is_deepspeed(accelerator):
            from deepspeed.utils import safe_set_full_fp32_param

            safe_set_full_fp32_param(parameter, tensors[name].to(parameter.device))
        with torch.no_grad():
            parameter.copy_(_like(tensors[name], parameter))


def _like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor sharded (and placed) like another one."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    tensor = tensor.to(model.device)
    if isinstance(model, DTensor):
        return distribute_tensor(tensor, model.device_mesh, model.placements)
    return tensor


MOMENTS = ("exp_avg", "exp_avg_sq")


def whole_moments(
    accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The optimiser's state by ``PARAMETER.KEY`` (AdamW's keys: exp_avg, exp_avg_sq, step), in full on all ranks."""
    states: dict[str, Tensor] = {}
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    for name, parameter in named_trainable(accelerator, module).items():
        if is_deepspeed(accelerator):
            from deepspeed.utils import safe_get_full_optimizer_state

            moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        else:
            moments = dict(inner.state.get(parameter, {}))
        numbers = {key: torch.as_tensor(value) for key, value in moments.items() if value is not None}
        states.update({f"{name}.{key}": _full(t.detach()).cpu().clone() for key, t in numbers.items()})
    return states


def set_moments(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    step: int,
) -> None:
    """The inverse of `whole_moments`; `step` is how often the optimiser has stepped."""
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition(".")
        states.setdefault(parameter_name, {})[key] = tensor
    for name, parameter in named_trainable(accelerator, module).items():
        if is_deepspeed(accelerator):
            from deepspeed.utils import safe_set_full_optimizer_state

            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, tensors[f"{name}.{key}"].to(parameter.device), key)
        elif state := states.get(name):
            inner.state[parameter] = {
                key: _like(tensor, parameter)
                if key in MOMENTS
                else tensor.item()  # Adafactor and bitsandbytes count in Python
                if tensor.dtype == torch.int64
                else tensor.to(parameter.device, copy=True)
                for key, tensor in state.items()
            }
    if is_deepspeed(accelerator):
        for state in getattr(inner, "optimizer", inner).state.values():
            if "step" in state:
                count = state["step"]
                state["step"] = torch.full_like(count, float(step)) if isinstance(count, Tensor) else step
