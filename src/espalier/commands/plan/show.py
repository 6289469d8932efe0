"""A plan as a table a stage, a verdict, and what to change; or as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.table import Table

from espalier import config
from espalier.commands.inspect.config import read_stage, start_of
from espalier.commands.plan.loads import load_of
from espalier.config.options import ModelOptions, RunOptions, TrainOptions
from espalier.errors import UserError
from espalier.plan.advice import Change, changes
from espalier.plan.devices import GIB, Device, device, this_machine
from espalier.plan.duration import EFFICIENCY
from espalier.plan.forecast import Forecast, Load, forecast
from espalier.plan.memory import host_bytes
from espalier.runs.catalogue import STAGES
from espalier.runs.pipeline import ALL_CLASSES
from espalier.screen import Screen, json_text


def show_plan(file: Path, overrides: list[str], gpu: str | None, gpus: int, *, as_json: bool) -> None:
    """Print the plan of each stage that trains.

    Raises:
        UserError: a mistake in the options or the data; a device that is not in the table.
    """
    console = Screen()
    raw = config.load_yaml(file, overrides)
    stages = config.split_pipeline(raw, ALL_CLASSES) if "stages" in raw else [raw]
    found = device(gpu) if gpu else this_machine()
    if not as_json:
        console.say(_about(found, gpus), "dim")
    tokenizers: dict[str, Any] = {}
    starts: dict[str, ModelOptions] = {}
    said: dict[str, Any] = {}
    for stage in stages:
        kind = config.stage_of(stage, ALL_CLASSES)
        if kind not in STAGES:
            continue
        options = config.build(stage, ALL_CLASSES[kind], all_classes=ALL_CLASSES)
        name = options[RunOptions].name or kind
        try:
            setup = read_stage(kind, options, tokenizers)
            tokenizers[name] = setup.tokenizer
            starts[name] = start = start_of(options[ModelOptions], starts) or setup.option(ModelOptions)
            load = load_of(name, kind, setup, options, start, found, gpus)
        except UserError as error:
            if len(stages) == 1:
                raise
            console.say(f"{name}: cannot be planned: {error}", "yellow")
            said[name] = {"problem": str(error)}
            continue
        result = forecast(load, found)
        train = options[TrainOptions]
        batch = train.per_device_train_batch_size or load.method.rows
        better = changes(load, found, batch, train.gradient_accumulation_steps)
        said[name] = _as_json(load, result, better)
        if not as_json:
            _show(console, load, result, better)
    if as_json:
        console.out(json_text({"device": found.name, "devices": gpus, "stages": said}))


def _about(found: Device, gpus: int) -> str:
    return (
        f"{gpus} x {found.name}: {found.memory / GIB:.1f} GiB, {found.half / 1e12:.3g} TFLOPS in 16 bits and "
        f"{found.single / 1e12:.3g} in 32 ({found.source}); products are reckoned at {EFFICIENCY:.0%} of that"
    )


def _show(console: Screen, load: Load, result: Forecast, better: list[Change]) -> None:
    table = Table(title=load.name, title_justify="left", box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    table.add_column("on each device")
    table.add_column("GiB", justify="right")
    table.add_column("share", justify="right")
    whole = sum(result.items.values())
    for name, size in sorted(result.items.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{size / GIB:.2f}", f"{size / whole:.0%}")
    table.add_row("with what libraries take", f"{result.needed / GIB:.2f}", f"of {result.capacity / GIB:.1f}")
    console.print(table)
    if result.start:
        console.print(
            f"that is what whole models take on each device, {result.start / GIB:.2f} GiB, before their weights are cut"
        )
    if result.reserved is not None and result.fits:
        console.print(f"nvidia-smi will show about {result.reserved / GIB:.2f} GiB")
    host = host_bytes(load.whole, load.method)
    if host:
        console.print(f"in the machine's memory: {host / GIB:.1f} GiB")
    style = {"fits": "green", "tight": "yellow"}.get(result.verdict, "bold red")
    console.say(
        f"{load.name}: {result.verdict}: {result.needed / GIB:.2f} of {result.capacity / GIB:.1f} GiB", style
    )
    slow = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in result.seconds.items())
    console.print(
        f"a step about {_time(result.step_seconds)} ({slow}); the run {_time(result.run_seconds)}, {load.steps} steps"
    )
    fitting = [change for change in better if change.same] or better
    if not result.fits and not fitting:
        console.print(
            "nothing that is known here would make it fit: take a smaller model, shorter rows or more devices"
        )
    elif not result.fits:
        few = min(fitting, key=lambda change: (len(change.keys), change.found.step_seconds))
        _advise(console, "the smallest change that fits", few)
        if fitting[0].keys != few.keys:
            _advise(console, "the fastest that fits", fitting[0])
        if not fitting[0].same:
            console.print("(it trains adapters instead of all weights)")
    elif fitting and fitting[0].found.step_seconds < 0.9 * result.step_seconds:
        _advise(console, "faster, and it fits", fitting[0])
    console.print("")


def _advise(console: Screen, what: str, change: Change) -> None:
    keys = yaml.safe_dump(change.keys, default_flow_style=True, width=1000).strip()
    console.print(
        f"{what}: {keys}  # {change.found.needed / GIB:.1f} GiB, {_time(change.found.step_seconds)} a step",
        markup=False,
    )


def _time(seconds: float | None) -> str:
    """
    >>> _time(0.25), _time(90), _time(7200)
    ('0.25 s', '1.5 min', '2.0 h')
    """
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _as_json(load: Load, result: Forecast, better: list[Change]) -> dict[str, Any]:
    return {
        "verdict": result.verdict,
        "needed_bytes": result.needed,
        "start_bytes": result.start,
        "reserved_bytes": result.reserved,
        "capacity_bytes": result.capacity,
        "host_bytes": host_bytes(load.whole, load.method),
        "items": result.items,
        "step_seconds": result.step_seconds,
        "seconds": result.seconds,
        "run_seconds": result.run_seconds,
        "steps": load.steps,
        "tokens_per_step": load.tokens,
        "changes": [
            {
                "keys": change.keys,
                "same": change.same,
                "needed_bytes": change.found.needed,
                "step_seconds": change.found.step_seconds,
            }
            for change in better[:5]
        ],
    }
