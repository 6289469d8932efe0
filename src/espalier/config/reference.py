"""The reference of all keys, for a page and for a terminal, made from the option classes and from nothing else.

A group is a class of options with the stages that take it. What a reader gets of a key: what its value may be (type,
allowed values, range), its default as YAML, and its sentence.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from espalier.config.convert import plain
from espalier.config.stage_defaults import default_sentence, stage_default
from espalier.config.write import OptionRow, describe

Classes = Sequence[type]

BEGIN = "<!-- These tables are made from the options: change them there, then `python -m espalier.commands.reference`. -->"
END = "<!-- The end of what is made from the options. -->"


def value_words(row: OptionRow) -> str:
    """What a value may be: ``a whole number, at least 1, or null``."""
    kinds = row.type.split(" or ") if row.type.endswith(" or null") else [row.type]
    if not row.range:
        return row.type
    words = f"{' or '.join(kind for kind in kinds if kind != 'null')}, {row.range}"
    return f"{words}, or null" if "null" in kinds else words


def default_words(value: Any) -> str:
    """A default as one would write it in YAML.

    >>> [default_words(value) for value in (None, True, ["all"], 5e-5, "", "auto")]
    ['null', 'true', '[all]', '5.0e-05', '""', 'auto']
    """
    if value == "":
        return '""'
    return yaml.safe_dump(plain(value), default_flow_style=True, width=10**6).partition("\n")[0]


def groups_of(all_classes: Mapping[str, Classes]) -> dict[tuple[str, ...], list[type]]:
    """The option classes by the stages that take them, in the order of the stages: none stands there twice."""
    groups: dict[tuple[str, ...], list[type]] = {}
    seen: set[type] = set()
    for classes in all_classes.values():
        for kind in classes:
            if kind not in seen:
                seen.add(kind)
                takers = tuple(stage for stage, others in all_classes.items() if kind in others)
                groups.setdefault(takers, []).append(kind)
    return groups


def markdown(all_classes: Mapping[str, Classes]) -> str:
    """A heading for each group of stages, and below it a table for each class."""
    lines: list[str] = []
    for stages, classes in groups_of(all_classes).items():
        lines += [f"## Keys of {listed_names(stages, all_classes)}", ""]
        for kind in classes:
            lines += table_of(kind, stages)
    return "\n".join(lines)


def table_of(kind: type, stages: Sequence[str] = ()) -> list[str]:
    """The sentence of an option class, and its keys as a table, where it has any; Markdown lines.

    Args:
        stages: that take it; of a default that depends on the stage, theirs are shown.
    """
    lines = [first_line(kind), ""]
    rows = describe([kind])
    lines += ["| key | value | default | what it does |", "|---|---|---|---|"] if rows else []
    for row in rows:
        default = default_words(row.default)
        shown = f"`{default}`" if len(default) <= 60 else "a text of its own"
        sentence, told = default_sentence(row.metadata, list(stages)), row.help
        if sentence:
            shown, told = "by stage", f"{row.help} Default: {sentence}."
        cells = (f"`{row.key}`", value_words(row), shown, told)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return [*lines, ""] if rows else lines


def listed_names(stages: Sequence[str], all_classes: Mapping[str, Classes]) -> str:
    """The stages of a group as a heading names them; all but one are named by the one that is missing."""
    missing = [stage for stage in all_classes if stage not in stages]
    if not missing:
        return "every stage"
    names = [f"`{stage}`" for stage in stages]
    if len(missing) == 1 and len(names) > 1:
        return f"every stage but `{missing[0]}`"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def first_line(kind: type) -> str:
    """The sentence of an option class."""
    return (kind.__doc__ or "").splitlines()[0]


def terminal(stage: str, classes: Classes, width: int = 100) -> str:
    """The keys of a stage as its ``--help`` shows them; lines of at most `width` characters."""
    lines = [f"Keys of {stage} (key: value in FILE.yaml, key=value here):"]
    for kind in classes:
        lines += ["", first_line(kind)]
        for row in describe([kind]):
            default = stage_default(row.default, row.metadata, stage, "full")
            lines += textwrap.wrap(
                f"{row.key}: {value_words(row)}. Default: {default_words(default)}.",
                width,
                initial_indent="  ",
                subsequent_indent="    ",
            )
            source = default_sentence(row.metadata, [stage])
            told = f"{row.help} Default: {source}." if source else row.help
            lines += textwrap.wrap(told, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def with_tables(page: str, all_classes: Mapping[str, Classes], further: str = "") -> str:
    """The page with the text between its marks `BEGIN` and `END` made anew; it must have both.

    Args:
        further: Markdown behind the tables of the stages.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, "the page has lost its marks"
    return f"{before}{BEGIN}\n\n{markdown(all_classes)}\n{further}{END}{after}"
