"""The kinds of rewards, and a user's list of them read into typed values.

A kind is a row of `KINDS`: its settings (a small class of options, with their checks), what it needs of a record, and
how its scorer is built. A rule without settings is a row of `rules.RULES` and nothing else.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from espalier.config.build import instance
from espalier.config.file import RawConfig
from espalier.config.option import Options, option
from espalier.data.encode.scored import ScoreAt
from espalier.rollout.rewards import checked, texts
from espalier.rollout.rewards.function import FunctionSettings, build_function
from espalier.rollout.rewards.judge import JudgeSettings, build_judge
from espalier.rollout.rewards.rules import COMPARING, RULES, Rule, by_rule
from espalier.rollout.rewards.scorer import AnswerScorer, Means


@dataclass(frozen=True, kw_only=True)
class RuleSettings(Options):
    """A rule has no settings of its own."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Options):
    """A trained reward model: of this project, or any sequence classifier with one label."""

    path: str = option("", "A reward model's folder, or run:NAME.", names="model")
    score_at: ScoreAt | None = option(None, "As reward_score_at.")
    retokenize: bool = option(
        False, "Read prompt and answer as text, by the reward model's own tokenizer and template."
    )

    def problems(self) -> list[str]:
        return [] if self.path else ["`path` is missing; name a reward model."]


@dataclass(frozen=True, kw_only=True)
class EntrySettings(Options):
    """What every entry of `rewards` has beside its `type`."""

    name: str = option("", "In the logs, as reward/NAME; else the type, the function's or the folder's name.")
    weight: float = option(1.0, "The reward is the sum of all entries, each times its weight.")


@dataclass(frozen=True)
class Kind:
    """A kind of rewards.

    Attributes:
        settings: a class of options; its sentence says what the number is.
        build: from the settings to a scorer; None of a model, which is loaded like one.
        needs: the column of a record that it cannot do without; "reference" stands for all that it may be called.
    """

    settings: type[Options]
    build: Callable[[Any, Means], AnswerScorer] | None = None
    needs: Callable[[Any], str] = lambda settings: ""


def _rule(name: str) -> Kind:
    def build(rule: Rule, settings: Options, means: Means) -> AnswerScorer:
        return by_rule(rule)

    needed = "reference" if name in COMPARING else ""
    return Kind(RuleSettings, partial(build, RULES[name]), lambda settings: needed)


def _reference(settings: Options) -> str:
    return "reference"


MODEL, FUNCTION = "model", "function"
KINDS: dict[str, Kind] = {
    **{name: _rule(name) for name in RULES},
    "mathematics": Kind(checked.MathematicsSettings, checked.build_mathematics, _reference),
    "format": Kind(texts.FormatSettings, texts.build_format),
    "pattern": Kind(checked.PatternSettings, checked.build_pattern),
    "json_schema": Kind(checked.SchemaSettings, checked.build_schema),
    "length": Kind(texts.LengthSettings, texts.build_length),
    "language": Kind(texts.LanguageSettings, texts.build_language),
    "repetition": Kind(texts.RepetitionSettings, texts.build_repetition),
    "unit_tests": Kind(
        checked.UnitTestsSettings, checked.build_unit_tests, lambda settings: str(settings.column)
    ),
    "judge": Kind(
        JudgeSettings, build_judge, lambda settings: "reference" if "{reference}" in settings.prompt else ""
    ),
    FUNCTION: Kind(FunctionSettings, build_function),
    MODEL: Kind(ModelSettings),
}
ALIASES = {
    "exact": "equals",
    "exact_match": "equals",
    "math": "mathematics",
    "regex": "pattern",
    "schema": "json_schema",
}


@dataclass(frozen=True)
class RewardSpec:
    """One entry of a list of rewards, checked as far as that goes without its files.

    >>> (spec,) = read_specs([{"type": "exact", "weight": 2}])[0]
    >>> spec.kind, spec.name, spec.weight
    ('equals', 'equals', 2.0)

    Attributes:
        kind: a name of `KINDS`.
        name: of its component in the logs; no two of a list have the same.
        weight: what its number is multiplied with.
        settings: of its kind.
    """

    kind: str
    name: str
    weight: float
    settings: Options

    @property
    def title(self) -> str:
        """How messages name it."""
        path = getattr(self.settings, "path", "")
        return str(path) if self.kind == FUNCTION else self.name


def read_specs(entries: Any, key: str = "rewards") -> tuple[list[RewardSpec], list[str]]:
    """A user's list -> its entries as values, and a sentence for everything that is wrong with it.

    Args:
        entries: names (``equals``, ``FILE.py:FUNCTION``) or mappings ``{type, name, weight, …}``.
        key: what the user has written them under: ``rewards``, or the key of a short form.
    """
    if not isinstance(entries, list) or not entries:
        return [], [f"`{key}` wants a list with one reward or more, such as [{{type: equals, weight: 2}}]."]
    specs: list[RewardSpec] = []
    problems: list[str] = []
    for number, entry in enumerate(entries, start=1):
        where = f"`{key}`, entry {number}{_of_kind(entry)}" if key == "rewards" else key
        spec, wrong = _read(entry)
        problems += [f"{where}: {text}" for text in wrong]
        if spec is not None:
            specs.append(replace(spec, name=_free(spec.name, specs)))
    return specs, problems


def _read(entry: Any) -> tuple[RewardSpec | None, list[str]]:
    values = RawConfig(canonical_entry(entry))
    kind = values.pop("type", None)
    if kind not in KINDS:
        return None, [_unknown_kind(kind)]
    classes = (EntrySettings, KINDS[kind].settings)
    known = ["type", *(item.name for one in classes for item in fields(one))]
    problems = [_unknown_key(key, str(kind), known) for key in values if key not in known]
    shared, wrong = instance(values, EntrySettings)
    own, wrong_too = instance(values, KINDS[kind].settings)
    problems += [*wrong, *wrong_too, *(own.problems() if own is not None else [])]
    if problems or not isinstance(shared, EntrySettings) or own is None:
        return None, problems
    if not math.isfinite(shared.weight) or shared.weight == 0:
        return None, [f"`weight` is {shared.weight:g}, with which it counts for nothing. Remove the entry."]
    if shared.name and not shared.name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        return None, [f"`name` is {shared.name!r}; wanted letters, digits, `_`, `-` and `.`."]
    name = shared.name or _own_name(str(kind), own)
    return RewardSpec(str(kind), name, shared.weight, own), []


def canonical_entry(entry: Any) -> dict[str, Any]:
    """An entry with the kind's own name as its type: a name alone, an alias and ``FILE.py:FUNCTION`` are spelt out."""
    made = dict(entry) if isinstance(entry, Mapping) else {"type": entry}
    kind = made.get("type")
    if isinstance(kind, str) and kind.rpartition(":")[0].endswith(".py") and "path" not in made:
        return {**made, "type": FUNCTION, "path": kind}
    return {**made, "type": ALIASES.get(kind, kind) if isinstance(kind, str) else kind}


def _of_kind(entry: Any) -> str:
    kind = canonical_entry(entry).get("type")
    return f" ({kind})" if kind in KINDS else ""


def _unknown_kind(kind: Any) -> str:
    if kind is None:
        return f"has no `type`; wanted one of {', '.join(KINDS)}, or FILE.py:FUNCTION."
    near = difflib.get_close_matches(str(kind).lower(), [*KINDS, *ALIASES], n=1, cutoff=0.6)
    hint = f" Did you mean `{ALIASES.get(near[0], near[0])}`?" if near else ""
    return f"unknown rule {kind!r}. Known: {', '.join(KINDS)}, or your own as FILE.py:FUNCTION.{hint}"


def _unknown_key(key: str, kind: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0.6)
    hint = f" Did you mean `{near[0]}`?" if near else f" It has {', '.join(known)}."
    return f"`{key}` is no setting of {kind}.{hint}"


def _own_name(kind: str, settings: Options) -> str:
    path = str(getattr(settings, "path", ""))
    if kind == FUNCTION:
        return path.rpartition(":")[2]
    if kind == MODEL:
        parts = [part for part in Path(path.removeprefix("run:")).parts if part not in ("/", "..", "model")]
        return parts[-1] if parts else MODEL
    return kind


def _free(name: str, before: list[RewardSpec]) -> str:
    taken, number, made = {spec.name for spec in before}, 1, name
    while made in taken:
        number += 1
        made = f"{name}_{number}"
    return made


# --- what the rest of a run must know of a list -------------------------------------------------------


def listed(entries: Any) -> list[Any]:
    """The entries of an option that may be one entry, a list of them, or nothing."""
    return entries if isinstance(entries, list) else [] if entries is None else [entries]


def paths_of(entries: Any) -> Iterator[tuple[str, str]]:
    """(what it names, the value) of every setting that is a path, as far as the list can be read."""
    for entry in listed(entries):
        made = canonical_entry(entry)
        kind = KINDS.get(str(made.get("type")))
        for item in fields(kind.settings) if kind is not None else ():
            value = made.get(item.name)
            if item.metadata.get("names") and isinstance(value, str) and value:
                yield str(item.metadata["names"]), value


def with_paths(entries: Any, change: Callable[[str], str]) -> Any:
    """The list with every model's path changed."""
    changed = []
    for entry in listed(entries):
        made = canonical_entry(entry)
        if made.get("type") == MODEL and isinstance(made.get("path"), str):
            made["path"] = change(made["path"])
        changed.append(made)
    return changed if isinstance(entries, list) else entries


def counted(entries: Any) -> Any:
    """The list without paths (whose content counts, see `paths_of`) and without what changes no number."""
    specs, _ = read_specs(listed(entries))
    rows = []
    for spec in specs:
        row: dict[str, Any] = {"type": spec.kind, "name": spec.name, "weight": spec.weight}
        for item in fields(spec.settings):
            value = asdict(spec.settings)[item.name]
            if spec.settings.same_result(item.name):
                continue
            if item.metadata.get("names") and isinstance(value, str):
                value = value.rpartition(":")[2] if spec.kind == FUNCTION else None
            row[item.name] = value
        rows.append(row)
    return rows
