"""What a run is made from: the options that change its result, and the content behind every path among them.

`MadeFrom` goes into ``summary.json`` and into each checkpoint. A later start compares its own with it key by key and
file by file, so that what differs can be named. Paths count for nothing: data or a model that has moved is the same.
An option says by itself what it names and whether it changes the result (`espalier.config.option.option`), so a new key
needs no line here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from espalier import config
from espalier.config.options import DataOptions, TrainOptions
from espalier.data.read.specs import parse_specs
from espalier.data.store.key import content
from espalier.models.identity import file_identity, model_identity, tokenizer_identity
from espalier.own_code import modules_of
from espalier.rollout.rewards.table import counted, paths_of

RECORDS = "per_device_train_batch_size x gradient_accumulation_steps x processes"
"""How many records are a step; how they are divided changes nothing but rounding."""
_DIVISION = ("per_device_train_batch_size", "gradient_accumulation_steps")
Contents = dict[str, dict[str, str]]


@dataclass(frozen=True)
class KeyChange:
    """One key that differs from an earlier start.

    Attributes:
        key: an option.
        text: what it was and what it is now, for people.
        by_option: whether the user has written another value; else the content behind the same value has changed.
    """

    key: str
    text: str
    by_option: bool


@dataclass(frozen=True)
class MadeFrom:
    """What a result depends on.

    Attributes:
        options: key -> value, of all that change the result.
        contents: key -> file -> identity of its content, of keys that name a path.
        defaults: of the options, for keys that an earlier version did not know.
    """

    options: dict[str, Any]
    contents: Contents
    defaults: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def from_json(cls, written: Any) -> MadeFrom | None:
        """What `as_json` gave; None for anything else."""
        if not isinstance(written, dict) or not all(
            isinstance(written.get(k), dict) for k in ("options", "contents")
        ):
            return None
        return cls(written["options"], written["contents"])

    def as_json(self) -> dict[str, Any]:
        return {"options": self.options, "contents": self.contents}

    @property
    def fingerprint(self) -> str:
        """A hash, equal where nothing that counts differs."""
        options = {k: _rest(v) if self.contents.get(k) else v for k, v in self.options.items()}
        contents = {k: list(files.values()) for k, files in self.contents.items()}
        return config.options_hash({"options": options, "contents": contents})

    def differences(self, earlier: MadeFrom) -> list[KeyChange]:
        """In what this start differs from an earlier one, by key; what the earlier one did not note is not compared."""
        differences: list[KeyChange] = []
        for key, value in self.options.items():
            before = earlier.options.get(key, self.defaults.get(key))
            ours, theirs = self.contents.get(key), earlier.contents.get(key)
            if (
                ours
                and theirs
                and list(ours.values()) == list(theirs.values())
                and _rest(value) == _rest(before)
            ):
                continue  # whatever the paths are
            if value != before:
                cure = (
                    f" (set gradient_accumulation_steps so that it is {before} again)"
                    if key == RECORDS
                    else ""
                )
                differences.append(KeyChange(key, f"{key}: {_shown(before)} -> {_shown(value)}{cure}", True))
            elif ours is not None and theirs is not None and ours != theirs:
                differences.append(KeyChange(key, f"{key}: {_changed(ours, theirs)}", False))
        return differences


def made_from(
    options: config.OptionSet, *, processes: int, known: Path, precision: str | None = None
) -> MadeFrom:
    """What a run of these options is made from, as everything lies on the disk now.

    Args:
        options: an instance of each option class, by class.
        processes: how many train together.
        known: a file that remembers the hashes of large data files; need not exist.
        precision: the one that was decided on, in place of the option's.

    Raises:
        UserError: data that is not there.
    """
    values: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    contents: Contents = {}
    for group in options:
        for item in fields(group):
            if group.same_result(item.name) or item.name in _DIVISION:
                continue
            value = getattr(group, item.name)
            defaults[item.name] = item.default if item.default_factory is MISSING else item.default_factory()
            kind = item.metadata.get("names")
            if kind == "data":
                weights = options[DataOptions].interleave_probs if item.name == "dataset" else None
                specs = parse_specs(value, options[DataOptions].dataset_dir, weights) if value else []
                value = [{k: v for k, v in asdict(spec).items() if v is not None} for spec in specs]
                contents[item.name] = {
                    file: identity for spec in specs for file, identity in content(spec, known).items()
                }
            elif kind == "rewards":
                contents[item.name] = _of_rewards(value)
                value = counted(value) if value else value
            elif kind is not None:
                contents[item.name] = _content(kind, value)
            values[item.name] = value
    train = options[TrainOptions]
    if train.per_device_train_batch_size is not None:
        values[RECORDS] = train.per_device_train_batch_size * train.gradient_accumulation_steps * processes
    if precision is not None:
        values["precision"] = precision
    return MadeFrom(json.loads(json.dumps(values, default=str)), contents, defaults)


def _content(kind: str, value: Any) -> dict[str, str]:
    """File -> identity behind the value of one key."""
    identities: dict[str, str] = {}
    for number, name in enumerate(value if isinstance(value, list) else [value]):
        if not isinstance(name, str):
            continue
        prefix = f"{Path(name).name}/" if number else ""
        if kind == "function":
            path = Path(name.rpartition(":")[0])
            identities |= {str(p): file_identity(p) for p in modules_of(path)} if path.suffix == ".py" else {}
        elif kind == "file":
            identities[name] = file_identity(Path(name))
        else:
            files = model_identity(name) if kind == "model" else tokenizer_identity(name)
            identities |= {prefix + file: identity for file, identity in files.items()}
    return identities


def _of_rewards(entries: Any) -> dict[str, str]:
    """File -> identity behind a list of rewards; the files of its models have equal names, so a number stands before."""
    identities: dict[str, str] = {}
    for number, (kind, path) in enumerate(paths_of(entries), start=1):
        prefix = f"{number}/" if kind == "model" else ""
        identities |= {prefix + file: identity for file, identity in _content(kind, path).items()}
    return identities


def _rest(value: Any) -> Any:
    """What a value says beside its path: a function's name, how data are read."""
    if isinstance(value, str):
        path, _, function = value.rpartition(":")
        return function if path.endswith(".py") else None
    if isinstance(value, Mapping):
        return {k: None if k == "path" else _rest(v) if k == "reader" else v for k, v in value.items()}
    return [_rest(v) for v in value] if isinstance(value, list) else value


def _changed(ours: dict[str, str], theirs: dict[str, str]) -> str:
    """Which files differ, each with what it was and is."""
    lines = [f"{name} is gone" for name in theirs if name not in ours]
    lines += [f"{name} is new" for name in ours if name not in theirs]
    lines += [
        f"the content of {name} has changed ({_short(theirs[name])} -> {_short(ours[name])})"
        for name in ours
        if name in theirs and ours[name] != theirs[name]
    ]
    more = f", and {len(lines) - 5} files more" if len(lines) > 5 else ""
    return "; ".join(lines[:5] or ["its files stand in another order"]) + more


def _short(identity: str) -> str:
    return identity if " " in identity else identity[:12]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 120 else text[:117] + "..."
