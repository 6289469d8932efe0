"""What to change where a stage does not fit: the change that costs least, and the fastest way that fits, as YAML keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from espalier.plan.devices import Device
from espalier.plan.forecast import Forecast, Load, forecast
from espalier.plan.memory import ModelSizes

LORA_RANK = 16


@dataclass(frozen=True)
class Change:
    """Keys to set, and what comes of it.

    Attributes:
        keys: YAML keys with their values.
        same: whether what is learned stays the same.
        found: the estimate with them.
    """

    keys: dict[str, object]
    same: bool
    found: Forecast


@dataclass(frozen=True)
class _Move:
    keys: dict[str, object]
    load: Load
    same: bool = True


def changes(load: Load, device: Device, batch: int, accumulation: int) -> list[Change]:
    """Every change, alone and by twos and threes, that fits; the fastest first, those that learn the same before others.

    Args:
        batch, accumulation: per_device_train_batch_size and gradient_accumulation_steps of the run.
    """
    found = []
    kinds = _kinds(batch, accumulation)
    for count in (1, 2, 3):
        for chosen in combinations(kinds, count):
            for made in _together(chosen, _Move({}, load)):
                result = forecast(made.load, device)
                if result.fits:
                    found.append(Change(made.keys, made.same, result))
    return sorted(found, key=lambda change: (not change.same, change.found.step_seconds, len(change.keys)))


def _kinds(batch: int, accumulation: int) -> list[list[str]]:
    sizes = [
        f"batch:{batch // parts}:{accumulation * parts}" for parts in (2, 4, 8, 16) if batch // parts >= 1
    ]
    return [
        ["checkpoint"],
        sizes,
        ["strategy:zero1", "strategy:zero2", "strategy:fsdp", "strategy:zero3"],
        ["offload:optimizer", "offload:all"],
        ["optim"],
        ["lora"],
    ]


def _together(kinds: tuple[list[str], ...], start: _Move) -> Iterator[_Move]:
    if not kinds:
        yield start
        return
    for name in kinds[0]:
        moved = _moved(start, name)
        if moved is not None:
            yield from _together(kinds[1:], moved)


def _moved(start: _Move, name: str) -> _Move | None:
    """The load after one more change; None where it is none, or is not possible."""
    kind, _, value = name.partition(":")
    load, method = start.load, start.load.method
    if kind == "checkpoint" and not method.checkpointing:
        return _with(
            start, {"gradient_checkpointing": True}, replace(load, method=replace(method, checkpointing=True))
        )
    keys: dict[str, object]
    if kind == "batch":
        rows, accumulation = (int(number) for number in value.split(":"))
        parts = max(1, round(method.rows / rows)) if method.rows > rows else 1
        if parts == 1:
            return None
        made = replace(method, rows=rows, logits=max(1, method.logits // parts))
        keys = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
        return _with(start, keys, replace(load, method=made, micro_batches=load.micro_batches * parts))
    if kind == "strategy" and method.processes > 1 and method.strategy != value:
        return _with(start, {"strategy": value}, replace(load, method=replace(method, strategy=value)))
    if kind == "offload" and method.offload == "none":
        usual = "zero3" if value == "all" else "zero2"
        strategy = (
            method.strategy
            if method.strategy in (("zero3", "fsdp") if value == "all" else ("zero2", "zero3", "fsdp"))
            else usual
        )
        made = replace(method, strategy=strategy, offload=value)
        return _with(start, {"strategy": strategy, "offload": value}, replace(load, method=made))
    if kind == "optim" and method.moments == 8:
        return _with(start, {"optim": "adamw_8bit"}, replace(load, method=replace(method, moments=2)))
    if kind == "lora" and all(model.trained > model.parameters // 4 for model in load.trained.values()):
        trained = {role: _adapted(model) for role, model in load.trained.items()}
        frozen = {role: size for role, size in load.frozen.items() if role != "reference"}
        keys = {"finetuning_type": "lora", "lora_rank": LORA_RANK}
        return _with(start, keys, replace(load, trained=trained, frozen=frozen), same=False)
    return None


def _with(start: _Move, keys: dict[str, object], load: Load, *, same: bool = True) -> _Move:
    return _Move({**start.keys, **keys}, load, start.same and same)


def _adapted(model: ModelSizes) -> ModelSizes:
    """The same with LoRA on all linear layers of its blocks: about seven, of one width in and out of three."""
    trained = LORA_RANK * 18 * model.width * model.layers
    return replace(
        model, trained=trained, frozen_bytes=2 * model.parameters, parameters=model.parameters + trained
    )
