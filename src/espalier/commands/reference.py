"""The keys of every stage in the docs and in ``--help``: `python -m espalier.commands.reference` writes the docs again."""

from __future__ import annotations

import shutil
from pathlib import Path

from espalier.config.reference import table_of, terminal, with_tables

PAGE = Path("docs") / "stages.md"


def stage_keys(stage: str) -> str:
    """The text of a stage's keys below its ``--help``, as wide as the terminal."""
    from espalier.runs.pipeline import ALL_CLASSES

    return terminal(stage, ALL_CLASSES[stage], width=min(100, shutil.get_terminal_size().columns))


def current(page: str) -> str:
    """The page as the options of today make it."""
    from espalier.runs.pipeline import ALL_CLASSES

    return with_tables(page, ALL_CLASSES, reward_settings())


def reward_settings() -> str:
    """The settings of each kind of rewards, as Markdown."""
    from espalier.rollout.rewards.table import ALIASES, KINDS, EntrySettings, RuleSettings

    lines = ["## Settings of rewards", "", *table_of(EntrySettings)]
    for name, kind in KINDS.items():
        if kind.settings is not RuleSettings:
            also = "".join(f", `{alias}`" for alias, of in ALIASES.items() if of == name)
            lines += [f"### `{name}`{also}", "", *table_of(kind.settings)]
    return "\n".join(lines) + "\n"


def main(page: Path = PAGE) -> None:
    """Write the tables of a checkout's page again."""
    page.write_text(current(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
