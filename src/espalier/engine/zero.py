"""ZeRO by DeepSpeed (Rajbhandari et al. 2020): the engine, its gradients, and whole tensors out of it and into it.

Stage 1 cuts the optimiser's state over the ranks, stage 2 the gradients too, stage 3 the weights too. DeepSpeed keeps a
flat float32 tensor a group of parameters and rank; where a parameter's share lies in it is looked up here and nowhere
else. What it does for a whole tensor by itself works after a first step only, and for lengths that divide evenly.

Leaves out the clipping that DeepSpeed does: it knows one norm for everything, and only after the step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from espalier.models.heads import whole_shape
from espalier.noise import quiet_again
from espalier.processor import Precision

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
BUCKET = 20_000_000
"""Elements that are sent at a time where nobody says otherwise; fewer where there are fewer."""


def config(stage: int, precision: Precision, offload: str, hidden: int, trained: int) -> dict[str, Any]:
    """A DeepSpeed configuration for an optimiser and a loop of our own.

    Args:
        stage: 1, 2 or 3.
        precision: of weights and products; the master weights are float32.
        offload: none, optimizer, or all (stage 3: the weights too).
        hidden: the width of the model, from which stage 3's sizes follow as transformers sets them.
        trained: numbers that are trained.
    """
    zero: dict[str, Any] = {"stage": stage, **sizes(stage, hidden, trained)}
    if offload in ("optimizer", "all"):
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload == "all" and stage == 3:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
    }


def sizes(stage: int, hidden: int, trained: int) -> dict[str, int]:
    """Buckets, as many numbers as are trained where there are few; and of stage 3, by transformers' rule for "auto", its
    own ones and the size up to which a parameter stays whole. For the arguments see `config`."""
    bucket = 2 * math.ceil(min(BUCKET, trained) / 2)  # DeepSpeed wants even ones
    if stage < 3:
        return {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    return {
        "reduce_bucket_size": hidden * hidden,
        "allgather_bucket_size": bucket,
        "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden),
        "stage3_param_persistence_threshold": 10 * hidden,
    }


def start(module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Any:
    """DeepSpeed's engine around a module; ``engine.optimizer`` steps for `optimizer`.

    Args:
        module: whole, on its device.
        settings: a whole configuration, without "auto".
    """
    import deepspeed
    from deepspeed import ops

    quiet_again("DeepSpeed")
    # One operation for inference is compiled wherever a CPU starts DeepSpeed, and nothing here calls it.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    ours = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings | ours)
    return engine


def is_zero(module: nn.Module) -> bool:
    """Whether a prepared module is DeepSpeed's engine."""
    if not type(module).__module__.startswith("deepspeed"):
        return False
    from deepspeed import DeepSpeedEngine

    return isinstance(module, DeepSpeedEngine)


def backward(engine: Any, loss: Tensor, *, last: bool) -> None:
    """One micro-batch; the ranks have exchanged all gradients after the last one."""
    engine.set_gradient_accumulation_boundary(last)
    engine.backward(loss)


@dataclass(frozen=True)
class Share:
    """The part of a parameter that this rank's optimiser holds.

    Attributes:
        flat: float32, what the optimiser steps.
        begin: where the part begins in `flat`.
        start, count: which elements of the flattened parameter it is.
    """

    flat: Tensor
    begin: int
    start: int
    count: int

    def of(self, flat: Tensor) -> Tensor:
        """The part in a tensor that is laid out as `flat` is."""
        return flat.narrow(0, self.begin, self.count)


def share_of(optimizer: Any, parameter: nn.Parameter) -> Share | None:
    """Where a trained parameter's part lies; None: this rank has none of it."""
    if hasattr(parameter, "ds_id"):
        group, begin, each = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = dist.get_rank() * each
        count = min(each, whole_shape(parameter).numel() - start)  # the last ones are padded
        flat = optimizer.fp32_partitioned_groups_flat[group]
        return Share(flat, begin, start, count) if count > 0 else None
    group, offset = _places_of(optimizer)[parameter]
    flat = optimizer.single_partition_of_fp32_groups[group]
    begins = dist.get_rank() * flat.numel()  # of this rank's part in the flat tensor of the group
    start = max(begins - offset, 0)
    end = min(begins + flat.numel() - offset, parameter.numel())
    return Share(flat, offset + start - begins, start, end - start) if end > start else None


_places: WeakKeyDictionary[Any, dict[nn.Parameter, tuple[int, int]]] = WeakKeyDictionary()


def _places_of(optimizer: Any) -> dict[nn.Parameter, tuple[int, int]]:
    """Of stages 1 and 2: parameter -> the optimiser's group, and where it begins in the flat tensor of that group.

    DeepSpeed's own map of them (0.19, ``_hp_mapping``) forgets that round_robin_gradients changes their order.
    """
    if optimizer not in _places:
        places: dict[nn.Parameter, tuple[int, int]] = {}
        offsets = getattr(optimizer, "round_robin_bit16_offsets", None)  # before 0.19 they stand without gaps
        for group, parameters in enumerate(optimizer.round_robin_bit16_groups):
            follow = [0, *itertools.accumulate(parameter.numel() for parameter in parameters)]
            at = follow[: len(parameters)] if offsets is None else offsets[group]
            places |= {parameter: (group, offset) for parameter, offset in zip(parameters, at, strict=True)}
        _places[optimizer] = places
    return _places[optimizer]


def kept_apart(parameter: Any) -> list[Tensor]:
    """What stage 3 keeps of a parameter on this rank while it is not gathered."""
    return [parameter.ds_tensor] if hasattr(parameter, "ds_id") else []


def whole_parameter(engine: Any, parameter: nn.Parameter) -> Tensor:
    """A parameter in full, on every rank; the float32 master where it is trained."""
    if parameter.requires_grad:
        return _gathered(engine, parameter, None)
    if not hasattr(parameter, "ds_id"):
        return parameter.detach()
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def set_parameter(engine: Any, parameter: nn.Parameter, tensor: Tensor) -> None:
    """Put a whole tensor into a trained parameter and its master."""
    share = share_of(engine.optimizer, parameter)
    if share is not None:
        share.of(share.flat.data).copy_(tensor.flatten().narrow(0, share.start, share.count))
    if not hasattr(parameter, "ds_id"):
        parameter.data.copy_(tensor)
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
        if dist.get_rank() == 0:
            parameter.copy_(tensor)


def whole_moment(engine: Any, parameter: nn.Parameter, key: str) -> Tensor | None:
    """A state of the optimiser of a parameter in full, on every rank; None before the first step."""
    states = engine.optimizer.optimizer.state
    held = any(key in state for state in states.values())
    return _gathered(engine, parameter, key) if held else None


def set_moment(engine: Any, parameter: nn.Parameter, key: str, tensor: Tensor | None) -> None:
    """The inverse of `whole_moment`; None is 0 everywhere."""
    share = share_of(engine.optimizer, parameter)
    if share is None:
        return
    state = engine.optimizer.optimizer.state[share.flat]
    flat = state.setdefault(key, torch.zeros_like(share.flat))
    part = share.of(flat)
    if tensor is None:
        part.zero_()
    else:
        part.copy_(tensor.flatten().narrow(0, share.start, share.count))


def flats(engine: Any) -> Iterator[tuple[int, Tensor]]:
    """(group of the optimiser, flat float32 tensor) of all that this rank steps."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            yield optimizer.sub_group_to_group_id[number], flat
    else:
        yield from enumerate(optimizer.single_partition_of_fp32_groups)


def steps_taken(engine: Any) -> Tensor | None:
    """How often the optimiser has stepped; None before the first time."""
    counts = [state["step"] for state in engine.optimizer.optimizer.state.values() if "step" in state]
    return torch.as_tensor(counts[0]).detach().clone() if counts else None


def set_steps_taken(engine: Any, count: Tensor) -> None:
    for _, flat in flats(engine):
        state = engine.optimizer.optimizer.state[flat]
        # AdamW's one kernel wants it beside the numbers.
        state["step"] = count.detach().clone().to(torch.float32).to(flat.device)


def _gathered(engine: Any, parameter: nn.Parameter, key: str | None) -> Tensor:
    """The master (key None) or a state of a trained parameter in full."""
    shape = whole_shape(parameter)
    share = share_of(engine.optimizer, parameter)
    made = torch.zeros(math.prod(shape), dtype=torch.float32, device=engine.device)
    if share is not None:
        flat = share.flat if key is None else engine.optimizer.optimizer.state[share.flat][key]
        made.narrow(0, share.start, share.count).copy_(share.of(flat.detach()))
    dist.all_reduce(made)
    return made.view(shape)


def gradients(engine: Any) -> Iterator[tuple[int, list[Tensor]]]:
    """(group of the optimiser, tensors) of this rank's share of the gradients, after the last micro-batch.

    They may be scaled in place, and the next step takes them as they are then.
    """
    optimizer = engine.optimizer
    third = engine.zero_optimization_stage() == 3
    offloaded = optimizer.offload_optimizer if third else optimizer.cpu_offload
    for number, (group, flat) in enumerate(flats(engine)):
        if offloaded:
            yield group, [] if flat.grad is None else [flat.grad]
        else:
            yield group, [grad for grad in optimizer.averaged_gradients.get(number) or [] if grad is not None]


def norms_of_groups(engine: Any) -> list[float]:
    """The norm of the gradient of each group of the optimiser, over all ranks, without fp16's scale."""
    squares = torch.zeros(len(engine.optimizer.param_groups), dtype=torch.float64, device=engine.device)
    for group, tensors in gradients(engine):
        for tensor in tensors:
            squares[group] += tensor.detach().double().pow(2).sum().to(squares.device)
    dist.all_reduce(squares)
    scale = float(engine.optimizer.loss_scale)
    return [math.sqrt(square) / scale if square == square else math.nan for square in squares.tolist()]


def scale_group(engine: Any, wanted: int, factor: float) -> None:
    """Scale the gradients of one group of the optimiser."""
    for group, tensors in gradients(engine):
        if group == wanted:
            for tensor in tensors:
                tensor.mul_(factor)
