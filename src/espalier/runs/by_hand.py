"""The options of a training whose loop its user writes (`espalier.rl`): those of a stage, but for what a run does beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from espalier import config
from espalier.config.option_set import OptionSet
from espalier.config.options import EngineOptions, EvaluationOptions, RunOptions, TrackOptions
from espalier.errors import UserError
from espalier.runs.catalogue import CLASSES
from espalier.runs.checks import check_startable, with_models_found
from espalier.runs.train import decided
from espalier.stages.quantised import holds_whole

BY_ITSELF = {RunOptions: ("seed", "output_dir", "stage"), EvaluationOptions: (), TrackOptions: ()}
"""Classes of options about what a run does beside its loop, with those of their keys that mean something here."""


def options_by_hand(stage: str, given: dict[str, Any], say: Callable[[str], None]) -> OptionSet:
    """The options as a run has them.

    Args:
        stage: that samples.
        given: keys of docs/stages.md.
        say: is given a line about each key that changes nothing.

    Raises:
        UserError: one is wrong, or is about what is done by hand here.
    """
    raw = config.RawConfig({"stage": stage, **given})
    values, notes = config.canonical(raw)
    for note in notes:
        say(note)
    for kind, meant in BY_ITSELF.items():
        for item in fields(kind):
            if item.name in values and item.name not in meant:
                raise UserError(
                    f"`{item.name}` is about logs, evaluations or checkpoints, which are your own here (`update` and "
                    "`evaluate` return the numbers, `save` writes the model). Remove it, or use `espalier run`."
                )
    chosen = config.build(raw, CLASSES[stage], all_classes=CLASSES)
    chosen = with_models_found(chosen, say)
    check_startable(stage, chosen)
    chosen = decided(chosen, None)
    if not holds_whole(chosen[EngineOptions]):
        raise UserError(
            f"strategy: {chosen[EngineOptions].strategy} cuts the models into shares, and by hand they are whole. Use "
            "strategy: single or ddp, or `espalier run`."
        )
    return chosen
