"""A stage before it runs: what it will hold on each device and how long it will take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from espalier.plan.devices import Device
from espalier.plan.duration import EFFICIENCY, sampling_seconds, step_seconds
from espalier.plan.memory import Method, ModelSizes, at_start, held, needed, reserved

TIGHT = 0.9
"""From this share of a device's memory on a plan is tight: estimates are good to a tenth or so."""


@dataclass(frozen=True)
class Load:
    """A stage as memory and time see it.

    Attributes:
        name: of the stage.
        trained: by role (policy, critic).
        frozen: by role (reference, reward), their bytes.
        method: how it is trained.
        tokens: of an optimiser step on one device, as they are laid out.
        micro_batches: of a step on one device.
        steps: of the run; None where they are not known.
        cache: bytes of keys, values and logits while answers are sampled.
        answers, at_a_time, new_tokens: sampled for a step on one device, together, and how long at most.
        sampler: bytes of a whole copy of the policy to sample from, where its weights are cut.
    """

    name: str
    trained: dict[str, ModelSizes]
    method: Method
    tokens: int
    micro_batches: int = 1
    steps: int | None = None
    frozen: dict[str, int] = field(default_factory=dict)
    cache: int = 0
    answers: int = 0
    at_a_time: int = 0
    new_tokens: int = 0
    sampler: int = 0

    @property
    def whole(self) -> ModelSizes:
        """All that is trained as one, for what depends on sums alone."""
        models = list(self.trained.values())
        return replace(
            models[0],
            parameters=sum(model.parameters for model in models),
            trained=sum(model.trained for model in models),
        )


@dataclass(frozen=True)
class Forecast:
    """What is foreseen of a stage on a device.

    Attributes:
        items: bytes of a device at the peak of a step, by what takes them.
        needed: bytes without which it runs out of memory.
        start: of them, those of whole models before they are cut; 0 where that is less than a step takes.
        reserved: bytes that nvidia-smi will show; None on a CPU.
        capacity: bytes of the device.
        seconds: of a step, by what takes them.
        steps: of the run.
    """

    items: dict[str, int]
    needed: int
    start: int
    reserved: int | None
    capacity: int
    seconds: dict[str, float]
    steps: int | None

    @property
    def verdict(self) -> str:
        """fits, tight or does not fit."""
        share = self.needed / max(1, self.capacity)
        return "does not fit" if share > 1 else "tight" if share > TIGHT else "fits"

    @property
    def fits(self) -> bool:
        return self.needed <= self.capacity

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def run_seconds(self) -> float | None:
        return None if self.steps is None else self.steps * self.step_seconds


def forecast(load: Load, device: Device) -> Forecast:
    """The memory and the time of a stage on one of `load.method.processes` devices."""
    method = load.method
    items: Counter[str] = Counter()
    for model in load.trained.values():
        items.update(held(model, method))
    items.update({name: size for name, size in load.frozen.items() if size})
    items["sampler"] = load.sampler
    if load.cache:  # answers are sampled when no activations are held
        items["rollout cache"] = max(0, load.cache - items["activations"] - items["logits"])
    share = method.processes if device.cpu else 1  # which share one memory
    seconds: dict[str, float] = {}
    for model in load.trained.values():
        for part, took in step_seconds(model, method, device, load.tokens, load.micro_batches).items():
            seconds[part] = seconds.get(part, 0.0) + took
    read = (
        sum(load.frozen.values()) / 4
    )  # parameters in float32, each read once; and before that the trained ones
    read += load.whole.parameters if load.answers else 0
    seconds["reading"] = 2.0 * read * load.tokens / (EFFICIENCY * device.peak(method.bits))
    if load.answers:
        policy = next(iter(load.trained.values()))
        seconds["sampling"] = sampling_seconds(
            policy, method, device, load.answers, load.at_a_time, load.new_tokens
        )
    step = share * needed(items, load.whole, method, cpu=device.cpu)
    cut = method.strategy in ("fsdp", "zero1", "zero2", "zero3") and not device.cpu
    start = at_start(load.whole.parameters, bytes_each=4) + sum(load.frozen.values()) if cut else 0
    return Forecast(
        {name: size for name, size in items.items() if size},
        max(step, start),
        start if start > step else 0,
        None if device.cpu else reserved(items, load.whole, method, device.memory),
        device.memory,
        {name: part for name, part in seconds.items() if part},
        load.steps,
    )
