"""A DeepSpeed configuration of the user's own: read, compared with the run's options, and completed.

What such a file says of the optimiser, the schedule, the precision and the size of a step the run's options say too. As
with transformers' Trainer, "auto" takes theirs, and another value is refused by name: nothing is overruled in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.disk.reading import read_object
from espalier.engine import zero
from espalier.errors import UserError
from espalier.processor import Precision

AUTO = "auto"
_PASSED = (
    "zero_optimization", "fp16", "bf16", "communication_data_type", "prescale_gradients", "gradient_predivide_factor",
    "data_types", "zero_allow_untested_optimizer", "aio", "seq_parallel_communication_data_type",
)  # fmt: skip
_COMPARED = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "optimizer",
    "scheduler", "zero_force_ds_cpu_optimizer",
)  # fmt: skip
_NO_USE = {
    "steps_per_print": "the run has its own line of progress",
    "wall_clock_breakdown": "the run's own speed is in metrics.jsonl",
    "dump_state": "config.yaml holds the options",
    "memory_breakdown": "memory_bytes is in metrics.jsonl",
    "tensorboard": "set report_to: tensorboard",
    "wandb": "set report_to: wandb",
    "csv_monitor": "metrics.jsonl holds every number",
    "comet": "metrics.jsonl holds every number",
    "comms_logger": "nothing shows it",
    "flops_profiler": "nothing shows it",
}
_INSTEAD = {
    "activation_checkpointing": "Set gradient_checkpointing: true in the run's options.",
    "amp": "Set precision in the run's options.",
    "checkpoint": "Set save_steps in the run's options.",
    "torch_autocast": "Set precision in the run's options.",
    **dict.fromkeys(
        (
            "autotuning", "compile", "compression_training", "curriculum_learning", "data_efficiency", "elasticity",
            "eigenvalue", "hybrid_engine", "pipeline", "progressive_layer_drop", "sparse_attention", "sparse_gradients",
            "tensor_parallel", "zenflow",
        ),
        "Remove it: a run cannot do that.",
    ),
}  # fmt: skip
SHIPPED = Path(__file__).parent / "deepspeed"
"""Files for stages 1, 2 and 3, with and without offload."""
SCHEDULES = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
"""DeepSpeed's schedules -> `lr_scheduler_type`."""


@dataclass(frozen=True)
class RunValues:
    """What the run's options say of the same things.

    Attributes:
        precision: of the matrix products; None: not decided yet.
        processes: of the run.
        micro_batch: records of one micro-batch; None where a step is measured in tokens.
        accumulation: micro-batches of a step.
        max_grad_norm: 0 is no clipping.
        optimizer: adamw or another one's name; lr, betas, eps and weight_decay are its numbers.
        schedule: the `lr_scheduler_type`.
        warmup_steps: as a number of steps; None: a share of all, which nobody knows yet.
    """

    precision: Precision | None
    processes: int
    micro_batch: int | None
    accumulation: int
    max_grad_norm: float
    optimizer: str
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    schedule: str
    warmup_steps: int | None


def shipped() -> list[str]:
    """The names of the files that come with Espalier.

    >>> shipped()[0]
    'stage-1'
    """
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def read(name: str) -> dict[str, Any]:
    """The settings in a file, or in one of `shipped` by its name.

    Raises:
        UserError: there is none, or it holds no JSON object.
    """
    path = Path(name).expanduser()
    own = SHIPPED / f"{name.removesuffix('.json')}.json"
    if not path.exists() and name.removesuffix(".json") in shipped():
        path = own
    if not path.exists():
        raise UserError(
            f"deepspeed: there is no file {name}. Check the path, or take one that comes with Espalier: "
            f"{', '.join(shipped())}."
        )
    return read_object(path, "deepspeed")


def stage_of(settings: Mapping[str, Any]) -> int:
    """The stage of ZeRO: 1, 2 or 3.

    Raises:
        UserError: it is none of them.
    """
    section = settings.get("zero_optimization")
    stage = section.get("stage") if isinstance(section, Mapping) else None
    if stage not in (1, 2, 3) or isinstance(stage, bool):
        raise _wrong(
            "zero_optimization.stage",
            stage,
            "1, 2 or 3. Without ZeRO set strategy: ddp instead of `deepspeed`",
        )
    return int(stage)


def checked(settings: Mapping[str, Any], given: RunValues) -> tuple[dict[str, Any], list[str]]:
    """What is DeepSpeed's of the settings, "auto" filled where the options say it; and lines about the rest.

    Sizes that follow from the model stay "auto" (`sized`).

    Raises:
        UserError: a key that is unknown or cannot be, or a value that is another than the options'.
    """
    stage_of(settings)
    known = {*_PASSED, *_COMPARED, *_NO_USE}
    for key in settings:
        if key in _INSTEAD:
            raise UserError(f"deepspeed: `{key}` is not possible here. {_INSTEAD[key]}")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise UserError(f"deepspeed: there is no `{key}`.{f' Did you mean `{near[0]}`?' if near else ''}")
    _same_step(settings, given)
    _same_optimizer(_section(settings, "optimizer"), given)
    notes = _same_schedule(_section(settings, "scheduler"), given)
    notes += [f"deepspeed: `{key}` has no effect: {why}" for key, why in _NO_USE.items() if key in settings]
    if settings.get("zero_force_ds_cpu_optimizer") is True:
        raise _wrong("zero_force_ds_cpu_optimizer", True, "false: the optimiser is torch's, offloaded or not")
    made = {key: _copied(value) for key, value in settings.items() if key in _PASSED}
    for kind in ("bf16", "fp16"):
        section = _section(made, kind)
        if given.precision is not None:
            _same(f"{kind}.enabled", section.get("enabled", AUTO), given.precision == kind, "precision")
        made[kind] = _without_auto(section) | {"enabled": given.precision == kind}
    _check_zero(made["zero_optimization"])
    return {k: v for k, v in made.items() if v != AUTO}, notes


def sized(settings: Mapping[str, Any], hidden: int, trained: int) -> dict[str, Any]:
    """`checked` settings with the sizes that follow from the model; what DeepSpeed knows by itself is left to it.

    Args:
        hidden: the width of the model.
        trained: how many numbers are trained.
    """
    section = settings["zero_optimization"]
    sizes = zero.sizes(section["stage"], hidden, trained)
    filled = {key: sizes.get(key, value) if value == AUTO else value for key, value in section.items()}
    return {**settings, "zero_optimization": _without_auto(filled)}


def _same_step(settings: Mapping[str, Any], given: RunValues) -> None:
    micro, steps = given.micro_batch, given.accumulation
    if micro is None:
        for key in ("train_batch_size", "train_micro_batch_size_per_gpu"):
            if settings.get(key, AUTO) != AUTO:
                raise _wrong(key, settings[key], '"auto", for tokens_per_step says how large a step is')
    else:
        whole = "per_device_train_batch_size x gradient_accumulation_steps x processes"
        _same(
            "train_batch_size", settings.get("train_batch_size", AUTO), micro * steps * given.processes, whole
        )
        key = "train_micro_batch_size_per_gpu"
        _same(key, settings.get(key, AUTO), micro, "per_device_train_batch_size")
    key = "gradient_accumulation_steps"
    _same(key, settings.get(key, AUTO), steps, key)
    _same("gradient_clipping", settings.get("gradient_clipping", AUTO), given.max_grad_norm, "max_grad_norm")


def _same_optimizer(section: Mapping[str, Any], given: RunValues) -> None:
    kind, numbers = section.get("type", AUTO), _section(section, "params")
    if str(kind).lower() not in (AUTO, "adam", "adamw") or given.optimizer != "adamw":
        raise _wrong(
            "optimizer.type", kind, f"AdamW, and optim is {given.optimizer}. Remove it, or set optim: adamw"
        )
    own = {"lr": (given.lr, "learning_rate"), "eps": (given.eps, "adam_epsilon"),
           "betas": (list(given.betas), "adam_beta1, adam_beta2"),
           "weight_decay": (given.weight_decay, "weight_decay")}  # fmt: skip
    for key, value in numbers.items():
        name = f"optimizer.params.{key}"
        if key in own:
            _same(name, value, *own[key])
        elif key == "adam_w_mode":
            _same(name, value, True, "optim: adamw")
        elif key not in ("torch_adam", "bias_correction") or value not in (True, AUTO):
            raise _wrong(name, value, "nothing of that kind. Remove it")


def _same_schedule(section: Mapping[str, Any], given: RunValues) -> list[str]:
    if not section:
        return []
    kind, numbers = str(section.get("type", "")), _section(section, "params")
    if kind not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise _wrong(
            "scheduler.type",
            kind,
            f"one of {known}. Remove it, and set lr_scheduler_type in the run's options",
        )
    if SCHEDULES[kind] != given.schedule:
        wanted = f"lr_scheduler_type: {SCHEDULES[kind]} in the run's options, which say {given.schedule}"
        raise _wrong("scheduler.type", kind, wanted)
    for key, value in numbers.items():
        name = f"scheduler.params.{key}"
        if key in ("warmup_min_lr", "warmup_min_ratio"):
            _same(name, value, 0, "a warmup that rises from 0")
        elif key == "warmup_max_lr":
            _same(name, value, given.lr, "learning_rate")
        elif key == "warmup_num_steps" and given.warmup_steps is not None:
            _same(name, value, given.warmup_steps, "warmup_steps")
        elif key == "warmup_type":
            _same(name, value, "linear", "the form of the warmup")
        elif value != AUTO:
            raise _wrong(name, value, '"auto": the run knows its number of steps when its data are read')
    told = "deepspeed: the learning rate rises in a straight line (DeepSpeed's own warmup_type is log)"
    return [told] if "warmup_type" not in numbers and given.warmup_steps != 0 else []


def _check_zero(section: Any) -> None:
    """What DeepSpeed itself says of the section of ZeRO.

    Raises:
        UserError: an unknown key, or a value of another type; or weights that would lie on a disk.
    """
    from pydantic import ValidationError

    for key in ("offload_optimizer", "offload_param"):
        device = _section(section, key).get("device")
        if device not in (None, "none", "cpu"):
            raise _wrong(f"zero_optimization.{key}.device", device, "cpu or none")
    if _section(section, "offload_param").get("device") == "cpu" and section["stage"] != 3:
        raise _wrong("zero_optimization.offload_param", "cpu", "stage 3, which alone cuts the weights")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**_without_auto(section))
    except (ValidationError, AssertionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        place = ".".join(["zero_optimization", *(str(part) for part in first["loc"])])
        raise UserError(f"deepspeed: `{place}`: {first['msg']}. Correct it, or remove it.") from error


def _section(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = settings.get(key, {})
    if not isinstance(section, dict):
        raise _wrong(key, section, "an object")
    return section


def _same(key: str, value: Any, ours: Any, option: str) -> None:
    """A value is "auto", or what the run's options say."""
    if value not in (AUTO, ours):
        raise _wrong(key, value, f'"auto", or {ours!r} as the run\'s options say ({option})')


def _wrong(key: str, found: Any, wanted: str) -> UserError:
    return UserError(f"deepspeed: `{key}` is {found!r}, wanted {wanted}.")


def _without_auto(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_auto(one) for key, one in value.items() if one != AUTO}
    return value


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value
