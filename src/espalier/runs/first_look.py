"""Mistakes that can be known without torch, said in a fraction of a second: the file, its keys, what they name.

`espalier.runs.pipeline` checks the same and more once its libraries are loaded; nothing is left to this look alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from espalier import config
from espalier.config.option_set import OptionSet
from espalier.config.options import RunOptions
from espalier.runs.finished import closing_lines, is_finished
from espalier.runs.named import check_named
from espalier.screen import Screen
from espalier.stages.declared import declared


def first_look(file: str, overrides: Sequence[str], chosen: config.Chosen) -> bool:
    """Look at a file as `espalier run` will run it; whether the whole run is done already, which is then said.

    Raises:
        UserError: as `espalier.runs.pipeline.run` raises, for the first kind of mistake that is found.
    """
    classes = declared()
    stages, folder = config.planned(config.load_yaml(file, overrides), classes, chosen)
    built = []
    for stage in stages:
        kind = config.stage_of(stage, classes)
        built.append(config.build(stage, classes[kind], all_classes=classes))
    for options in built:
        _check_named(options)
    if not is_finished(stages, folder):
        return False
    say = Screen(stderr=True).say
    for options in built:
        run = options[RunOptions]
        say(f"{run.name or run.stage}: done already ({folder / (run.name or run.stage)}), skipped", "dim")
    for line in [f"report: {folder / 'report.html'}", *closing_lines(stages, folder)]:
        say(line)
    return True


def _check_named(options: OptionSet) -> None:
    for group in options:
        for item in fields(group):
            kind, value = item.metadata.get("names"), getattr(group, item.name)
            if kind is None or kind == "rewards" or item.name == "deepspeed":  # which may be one of ours
                continue
            for name in value if isinstance(value, list) else [value]:
                if name is not None and not (isinstance(name, str) and name.startswith("run:")):
                    check_named(kind, item.name, name, options)
