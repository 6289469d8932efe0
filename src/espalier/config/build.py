"""A flat mapping -> checked option instances, with every problem in one message.

Knows no particular option: the classes say what exists, `names` what other tools call it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields
from functools import cache
from typing import Any, get_type_hints

from espalier.config.convert import Unfit, convert, found_name
from espalier.config.file import RawConfig
from espalier.config.names import (
    IGNORED,
    PRESETS,
    SPREAD,
    STAGE_SYNONYMS,
    STAND_INS,
    SWITCHES,
    SYNONYMS,
    VALUES,
)
from espalier.config.option import Options
from espalier.config.option_set import OptionSet
from espalier.config.ranges import in_range, range_words
from espalier.config.refused import REFUSED
from espalier.config.stage_defaults import stage_default
from espalier.errors import UserError

Classes = Sequence[type]


def canonical(raw: Mapping[str, Any]) -> tuple[RawConfig, list[str]]:
    """Other tools' names and values -> ours, without the keys that Espalier has no use for.

    Works on one stage and on a pipeline (its `stages` too), and changes nothing the second time.

    Returns:
        The mapping, and one line for each key that is ignored, with what happens instead.

    Raises:
        UserError: one option is written under two names with different values.
    """
    given, out, notes = RawConfig.of(raw), RawConfig(), list[str]()
    spread: dict[str, Any] = {}
    stage = VALUES["stage"].get(str(given.get("stage")), given.get("stage"))
    for key, value in given.items():
        if key in IGNORED:
            notes.append(f"{given.where(key)} is not used: {IGNORED[key]}.")
            continue
        own = key in STAGE_SYNONYMS.get(str(stage), {}) or key in PRESETS.get(str(stage), {})
        if key in REFUSED and not own and REFUSED[key].asks_nothing(value, str(stage)):
            continue
        if key == "stages" and isinstance(value, list):
            inner = [canonical(item) if isinstance(item, Mapping) else (item, []) for item in value]
            out[key] = [item for item, _ in inner]
            notes += [note for _, lines in inner for note in lines]
            continue
        name, value, says_something = _translate(given, key, str(stage))
        if not says_something:
            continue
        if isinstance(value, str) and value in STAND_INS.get(name, {}):
            value, instead = STAND_INS[name][value]
            notes.append(f"{given.where(key)}: {given[key]} is not offered; {instead}.")
        if name in SPREAD.get(str(stage), {}):
            spread |= dict.fromkeys(SPREAD[str(stage)][name], value)
            continue
        if name in PRESETS.get(str(stage), {}):
            spread |= _preset(PRESETS[str(stage)][name], given.where(key), value)
            continue
        if value is None and out.get(name) is not None:
            continue  # the other name says something
        if out.get(name) is not None and out[name] != value:
            raise UserError(
                f"{given.where(key)} and `{out.written[name]}` both set `{name}`, to different values. Keep one."
            )
        out[name] = value
        out.written[name] = given.written.get(key, key)
        if key in given.places:
            out.places[name] = given.places[key]
    for name, value in spread.items():
        out.setdefault(name, value)
    if out.get("lora_rank") == 0 and out.get("finetuning_type") in (None, "full", "freeze"):
        del out["lora_rank"]  # how the projects of 2023 say that there is no LoRA
    return out, list(dict.fromkeys(notes))


def _preset(table: Mapping[str, Mapping[str, Any]], where: str, value: Any) -> Mapping[str, Any]:
    """The keys that a value of another key stands for."""
    chosen = str(value).lower()
    if chosen not in table:
        raise UserError(f"{where}: {value} is none of {', '.join(table)}.")
    return table[chosen]


def _translate(given: RawConfig, key: str, stage: str) -> tuple[str, Any, bool]:
    """Our name and value of one key, and whether it says anything (`fp16: false` beside `bf16: true` does not)."""
    value = given[key]
    if key in SWITCHES and _boolean(value) is not None:
        value = _boolean(value)
        name, on, off = SWITCHES[key]
        others = [other for other, switch in SWITCHES.items() if switch[0] == name and other != key]
        set_elsewhere = given.get(name) is not None or any(_boolean(given.get(other)) for other in others)
        return name, on if value else off, value or (off is not None and not set_elsewhere)
    if key in SWITCHES and value == "auto":
        return SWITCHES[key][0], value, True
    name = STAGE_SYNONYMS.get(stage, {}).get(key) or SYNONYMS.get(key, key)
    if isinstance(value, str | int) and str(value) in VALUES.get(name, {}):
        value = VALUES[name][str(value)]
    return name, value, True


def _boolean(value: Any) -> bool | None:
    """A boolean, also one in quotes; None for anything else."""
    return {"true": True, "false": False}.get(str(value).lower()) if isinstance(value, bool | str) else None


def stage_of(raw: Mapping[str, Any], all_classes: Mapping[str, Classes]) -> str:
    """The stage that `raw` names: a key of `all_classes`.

    Raises:
        UserError: `stage` is missing or not one of `all_classes`.
    """
    values, _ = canonical(raw)
    stage = values.get("stage")
    if isinstance(stage, str) and stage in all_classes:
        return stage
    choices = ", ".join(all_classes)
    if stage is None and raw.get("export_dir") is not None:
        adapter = values.get("adapter_name_or_path")
        command = (
            f"espalier merge {adapter} {raw['export_dir']}" if isinstance(adapter, str) else "espalier merge"
        )
        raise UserError(
            f"`export_dir`: this file writes a model and trains none; wanted here is a file with `stage`. Use: {command}"
        )
    if stage is None:
        raise UserError(f"`stage` is missing; wanted one of {choices}, for example `stage: sft`.")
    raise UserError(
        f"{values.where('stage')} is {found_name(stage)}; wanted one of {choices}.{near(stage, all_classes)}"
    )


def build(raw: Mapping[str, Any], classes: Classes, *, all_classes: Mapping[str, Classes]) -> OptionSet:
    """Makes one instance of each class from the flat mapping, after checking everything.

    A key that is null counts as not written, unless null is a value of its own. Keys that Espalier ignores are left
    out here; show `canonical(raw)[1]` to the user.

    Args:
        raw: the keys of one stage, under our names or others'.
        classes: the option classes of this stage.
        all_classes: stage -> its option classes, to say where a foreign key belongs.

    Raises:
        UserError: ONE for all problems: unknown keys (with the nearest name), keys of another stage, wrong types,
            values out of range, contradictions.
    """
    values, _ = canonical(raw)
    known = known_keys(classes)
    stage = str(values.get("stage") or "this command")
    errors = [
        unknown_key(values, key, stage, known, all_classes)
        for key, value in values.items()
        if key not in known and not (value is False and _is_off_elsewhere(key, all_classes))
    ]
    if values.get("lora_rank") and "finetuning_type" not in values and "finetuning_type" in known:
        errors.append(
            f"{values.where('lora_rank')} is set and `finetuning_type` is not, which then trains all weights. Write "
            "finetuning_type: lora, or remove it."
        )
    built: list[Options] = []
    for kind in classes:
        made, wrong = instance(values, kind, stage)
        errors += wrong
        if made is not None:
            built.append(made)
            errors += made.problems()
    if errors:
        raise UserError(
            listed(
                "One option is wrong:" if len(errors) == 1 else f"{len(errors)} options are wrong:", errors
            )
        )
    return OptionSet(tuple(built))


def instance(values: RawConfig, kind: type, stage: str = "") -> tuple[Options | None, list[str]]:
    """One option class with those of the values that are its own; None, and what is wrong, where a type or a range is.

    Keys that it does not know are left to the caller, and so is `Options.problems`.
    """
    arguments: dict[str, Any] = {}
    errors: list[str] = []
    for item in fields(kind):
        given = values.get(item.name)
        if given is None and "by_stage" in item.metadata:
            tuned = str(values.get("finetuning_type"))
            arguments[item.name] = stage_default(item.default, item.metadata, stage, tuned)
        if item.name not in values:
            continue
        try:
            arguments[item.name] = _checked(values, item, _hints(kind)[item.name])
        except Unfit as unfit:
            if given is not None:
                errors.append(str(unfit))
    return (None if errors else kind(**arguments)), errors


def _checked(values: RawConfig, item: Field[Any], wanted: Any) -> Any:
    """The value of one field; `Unfit` with the whole message where its type or its range is wrong."""
    given, where = values[item.name], values.where(item.name)
    try:
        value = convert(given, wanted)
    except Unfit as unfit:
        words = str(unfit)
        hint = near(given, words.partition("one of")[2].split())
        quote = " Put it in quotes." if "a text" in words and isinstance(given, int | float) else ""
        raise Unfit(f"{where} is {found_name(given)}; wanted {words}.{quote}{hint}") from None
    if not in_range(value, item.metadata):
        raise Unfit(f"{where} is {given}; wanted a number of {range_words(item.metadata)}.")
    return value


def _is_off_elsewhere(key: str, all_classes: Mapping[str, Classes]) -> bool:
    """Whether a key is another stage's switch that is off by itself, so that false asks for nothing here."""
    defaults = [
        item.default
        for classes in all_classes.values()
        for kind in classes
        for item in fields(kind)
        if item.name == key
    ]
    return bool(defaults) and all(default is False for default in defaults)


def unknown_key(
    values: RawConfig, key: str, stage: str, known: Iterable[str], all_classes: Mapping[str, Classes]
) -> str:
    """The message about a key that `stage` does not have: whose it is, or the nearest name."""
    owners = [name for name, classes in all_classes.items() if key in known_keys(classes)]
    if owners:
        return f"{values.where(key)} is an option of {' and '.join(owners)}, not of {stage}. Remove it here."
    if key in SWITCHES:
        return f"{values.where(key)} is {found_name(values[key])}; wanted true, false or auto."
    if key in REFUSED:
        return f"{values.where(key)} cannot be taken over. {REFUSED[key].cure}"
    if key == "stages":
        return f"{values.where(key)} makes a pipeline of several stages; start it with `espalier run`."
    hint = near(key, [*known, *SYNONYMS, *IGNORED, *REFUSED])
    return f"{values.where(key)} is not an option of {stage}.{hint or ' No option has a similar name; remove it.'}"


def known_keys(classes: Classes) -> list[str]:
    """The keys of all the classes; no two share one, and none is a synonym of another tool's."""
    keys = [item.name for kind in classes for item in fields(kind)]
    assert len(keys) == len(set(keys)), f"a key in two option classes: {keys}"
    clash = [key for key in keys if key in SYNONYMS or key in IGNORED or key in SWITCHES]
    assert not clash, f"an option that config/names.py calls a synonym: {clash}"
    return keys


def near(word: Any, names: Iterable[str]) -> str:
    """` Did you mean …?` with our name of the nearest one, or nothing."""
    cleaned = [name.strip(",)") for name in names]
    found = difflib.get_close_matches(str(word).lower().replace("-", "_"), cleaned, n=1, cutoff=0.6)
    return f" Did you mean `{SYNONYMS.get(found[0], found[0])}`?" if found else ""


def listed(title: str, errors: Iterable[str]) -> str:
    return "\n".join([title, *(f"  {error}" for error in errors)])


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
