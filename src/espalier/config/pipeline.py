"""A pipeline's YAML (shared keys, then `stages:`) -> one flat mapping for each stage."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from espalier.config.build import Classes, canonical, known_keys, listed, stage_of, unknown_key
from espalier.config.file import RawConfig
from espalier.config.options import FOLDER_NAME
from espalier.errors import UserError


def split_pipeline(raw: Mapping[str, Any], all_classes: Mapping[str, Classes]) -> list[RawConfig]:
    """One flat mapping for each stage, in order, the shared keys filled in.

    A shared key goes to the stages that know it; a stage's own key wins over a shared one. ``run:NAME`` stays as it
    is; only that NAME is an earlier stage is checked here. Keys that are wrong inside one stage are left to `build`.

    Args:
        raw: ``{"seed": 1, "stages": [{"name": "sft", "stage": "sft", …}, …]}``.
        all_classes: stage -> its option classes.

    Raises:
        UserError: ONE for all problems: no stages, a name missing or twice, an unknown stage, a shared key that no
            stage of this pipeline knows, a reference to a stage that is not earlier.
    """
    shared, _ = canonical(raw)
    stages = shared.pop("stages", None)
    _check_names(stages)
    errors = []
    if "stage" in shared or "name" in shared:
        errors.append("`stage` or `name` beside `stages`: each stage of the list has its own. Move it there.")
    known: list[list[str]] = []
    for stage in stages:
        try:
            known.append(known_keys(all_classes[stage_of(stage, all_classes)]))
        except UserError as error:
            errors.append(str(error))
    if len(known) == len(stages):
        used = {key for keys in known for key in keys} | {"stage", "name"}
        foreign = [key for key in shared if key not in used]
        errors += [
            unknown_key(shared, key, "any stage of this pipeline", used, all_classes) for key in foreign
        ]
        split = [_merge(shared, stage, keys) for stage, keys in zip(stages, known, strict=True)]
        errors += _wrong_references(split)
    if errors:
        raise UserError(listed("The pipeline is wrong:", errors))
    return split


def _check_names(stages: Any) -> None:
    if (
        not isinstance(stages, list)
        or not stages
        or not all(isinstance(stage, RawConfig) for stage in stages)
    ):
        raise UserError(
            "`stages` must be a list of mappings, each with `name` and `stage`: `- {name: sft, stage: sft}`."
        )
    errors, seen = [], set[str]()
    for number, stage in enumerate(stages, start=1):
        name = stage.get("name")
        if name is None:
            errors.append(
                f"Stage {number} has no `name`; give it one, for example `name: {stage.get('stage', 'sft')}`."
            )
        elif not isinstance(name, str) or not re.fullmatch(FOLDER_NAME, name):
            errors.append(
                f"{stage.where('name')} is {name!r}; wanted letters, digits, `_`, `-` and `.` (it is a folder)."
            )
        elif name in seen:
            errors.append(f"{stage.where('name')} {name} is taken by an earlier stage. Choose another.")
        seen.add(str(name))
    if errors:
        raise UserError(listed("The pipeline is wrong:", errors))


def _merge(shared: RawConfig, stage: RawConfig, known: list[str]) -> RawConfig:
    mine = {key: value for key, value in shared.items() if key in known and key not in stage}
    if "model_name_or_path" in stage:
        mine.pop("model_revision", None)  # that of the shared model
    places = {key: place for key, place in shared.places.items() if key in mine}
    written = {key: name for key, name in shared.written.items() if key in mine}
    return RawConfig({**mine, **stage}, {**places, **stage.places}, {**written, **stage.written})


def _wrong_references(split: list[RawConfig]) -> list[str]:
    names = [stage["name"] for stage in split]
    errors = []
    for number, stage in enumerate(split):
        for key, value in stage.items():
            for target in (found.partition("/")[0] for found in references(value)):
                if target in names[:number]:
                    continue
                near = difflib.get_close_matches(target, names[:number], n=1)
                hint = (
                    f" Did you mean run:{near[0]}?"
                    if near
                    else f" Earlier: {', '.join(names[:number]) or 'none'}."
                )
                why = "is not earlier than this stage" if target in names else "is no stage of this pipeline"
                errors.append(
                    f"{stage.where(key)} of stage {names[number]} is run:{target}, but {target} {why}.{hint}"
                )
    return errors


def references(value: Any) -> Iterator[str]:
    """What stands behind ``run:`` in a value, in lists and mappings too: NAME or NAME/file."""
    if isinstance(value, str) and value.startswith("run:"):
        yield value.removeprefix("run:")
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)
