"""The table of docs/migrating.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from espalier.config import canonical
from espalier.config.names import SWITCHES

PAGE = Path(__file__).parents[1] / "docs" / "migrating.md"
STAGES = {"(DPO)": "dpo", "(GRPO)": "grpo", "(PPO)": "ppo"}


def test_every_name_of_the_table_is_ours_by_another_name() -> None:
    section = PAGE.read_text("utf-8").split("## TRL, axolotl, transformers")[1].split("\n## ")[0]
    checked = 0
    for line in re.findall(r"^\| (`.*) \| .* \|$", section, re.M):
        theirs, ours = line.split(" | ")
        if ":" in theirs:
            continue
        stage = next(
            (STAGES[mark] for mark in STAGES if mark in theirs), "ppo" if "sft_model" in theirs else "sft"
        )
        names, wanted = re.findall(r"`(\w+)`", theirs), re.findall(r"`(\w+)`", ours)
        for place, name in enumerate(names):
            value = True if name in SWITCHES else 0.5
            found = canonical({"stage": stage, name: value})[0]
            new = [key for key in found if key != "stage"]
            assert new and new[0] in (wanted if len(wanted) == 1 or "GRPO" in theirs else [wanted[place]]), (
                name,
                new,
            )
            checked += 1
    assert checked > 50
