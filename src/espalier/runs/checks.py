"""What can be checked of a stage before its first file is touched: files, folders, trackers, libraries.

A pipeline checks all its stages before the first one begins; ``run:NAME`` is not there yet and is left to its stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from espalier.config.option_set import OptionSet
from espalier.config.options import EngineOptions, ModelOptions, RunOptions, TrackOptions, TrainOptions
from espalier.engine.strategy import ZERO, needs_deepspeed
from espalier.engine.trackers import check_installed
from espalier.errors import UserError
from espalier.models import load
from espalier.models.hub_revision import MAIN, at_revision, on_the_hub
from espalier.models.run_folder import find_model
from espalier.rollout.rewards.table import paths_of, with_paths
from espalier.runs.catalogue import check_possible
from espalier.runs.named import check_named
from espalier.runs.strategies import with_strategy


def check_startable(stage: str, options: OptionSet) -> None:
    """Raises UserError at the first thing that is missing or cannot be done."""
    if EngineOptions in options and TrainOptions in options:
        options = with_strategy(options)
    check_possible(stage, options)
    for tracker in options[TrackOptions].report_to:
        check_installed(tracker)
    if options[EngineOptions].strategy in ZERO and find_spec("deepspeed") is None:
        needs_deepspeed(options[EngineOptions].strategy)
    wanted = options[RunOptions].resume
    if isinstance(wanted, str) and not Path(wanted).is_dir():
        raise UserError(
            f"`resume` is {wanted!r}; wanted true, false, or the folder of a checkpoint (step-N)."
        )
    for group in options:
        for item in fields(group):
            kind = item.metadata.get("names")
            value = getattr(group, item.name)
            named = [(str(kind), name) for name in (value if isinstance(value, list) else [value]) if kind]
            for what, name in paths_of(value) if kind == "rewards" else named:
                if name is not None and not (isinstance(name, str) and name.startswith("run:")):
                    _check(what, item.name, name, options)


def with_models_found(options: OptionSet, say: Callable[[str], None]) -> OptionSet:
    """The options with the model of its last stage in place of every folder of a run, and with the folder of
    `model_revision` in place of the hub id that it is a revision of.

    Args:
        say: is given a line about each.

    Raises:
        UserError: such a run is not finished, or is the one that this stage belongs to; a revision that there is not.
    """
    own = Path(options[RunOptions].output_dir).resolve()
    model = options[ModelOptions]
    base, revised = model.model_name_or_path, model.model_revision != MAIN

    def located(name: str) -> str:
        if name.startswith("run:"):
            return name
        return at_revision(name, model.model_revision) if revised and name == base else find_model(name, say)

    for group in options:
        found: dict[str, Any] = {}
        for item in fields(group):
            value = getattr(group, item.name)
            if item.metadata.get("names") == "rewards" and value:
                found[item.name] = with_paths(value, located)
            if item.metadata.get("names") not in ("model", "tokenizer") or not value:
                continue
            names = value if isinstance(value, list) else [value]
            models = [located(name) for name in names]
            if any(
                one != name and Path(name).resolve() == own for one, name in zip(models, names, strict=True)
            ):
                raise UserError(
                    f"`{item.name}` is {own.name}, the folder that this stage writes to, and its last stage will be "
                    f"another one. Name the stage to start from, as in {models[0].removesuffix('/model')}."
                )
            found[item.name] = models if isinstance(value, list) else models[0]
        options = options.replaced(replace(group, **found))
    return options


def with_hub_ids(options: OptionSet) -> OptionSet:
    """The options with the hub ids in place of the folders that `with_models_found` has fetched."""
    model = options[ModelOptions]
    fetched = {key: on_the_hub(str(getattr(model, key))) for key in ("model_name_or_path", "tokenizer")}
    ids = {key: known[0] for key, known in fetched.items() if known is not None}
    return options.replaced(replace(model, **ids)) if model.model_revision != MAIN else options  # type: ignore[arg-type]


def _check(kind: str, key: str, value: Any, options: OptionSet) -> None:
    check_named(kind, key, value, options)
    if kind == "model" and isinstance(value, str):
        folder = find_model(value, say=lambda line: None)
        load.check_folder(folder, allow_pickle=options[ModelOptions].allow_pickle)
