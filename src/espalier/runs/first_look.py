"""Mistakes that can be known without torch, said in a fraction of a second: the file, its keys, what they name.

`espalier.runs.pipeline` checks the same and more once its libraries are loaded; nothing is left to this look alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from espalier import config
from espalier.config.option_set import OptionSet
from espalier.runs.named import check_named
from espalier.stages.declared import declared


def first_look(file: str, overrides: Sequence[str], chosen: config.Chosen) -> None:
    """Look at a file as `espalier run` will run it.

    Raises:
        UserError: as `espalier.runs.pipeline.run` raises, for the first kind of mistake that is found.
    """
    classes = declared()
    raw = config.load_yaml(file, overrides)
    every = config.split_pipeline(raw, classes) if "stages" in raw else [raw]
    stages = chosen.of(every)
    if chosen:
        config.check_made(stages, Path(str(config.canonical(every[0])[0].get("output_dir", "runs/run"))))
    built = []
    for stage in stages:
        kind = config.stage_of(stage, classes)
        built.append(config.build(stage, classes[kind], all_classes=classes))
    for options in built:
        _check_named(options)


def _check_named(options: OptionSet) -> None:
    for group in options:
        for item in fields(group):
            kind, value = item.metadata.get("names"), getattr(group, item.name)
            if kind is None or kind == "rewards":
                continue
            for name in value if isinstance(value, list) else [value]:
                if name is not None and not (isinstance(name, str) and name.startswith("run:")):
                    check_named(kind, item.name, name, options)
