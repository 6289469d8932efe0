"""DPO's stage with each of its losses: the options that go with it, its first number, the likelihood beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.config import build, canonical
from espalier.errors import UserError
from espalier.maths.preferences import PREFERENCES
from espalier.runs.catalogue import CLASSES
from espalier.stages.objectives.dpo import DPOOptions, Preferences
from tests.stages.conftest import rows, run

Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("kind", PREFERENCES)
def test_the_first_step_is_looked_at_without_the_likelihood(kind: str) -> None:
    needed = {"label_smoothing": 0.1} if kind == "exo_pair" else {}
    settings = DPOOptions(pref_loss=kind, **needed).settings(0.1)
    row = PREFERENCES[kind]
    start = row.at_start(**settings)
    objective = Preferences(row, settings, 0.5, fresh=True)
    objective.check({"loss": (start or 0.0) + (row.nll + 0.5) * 3.0, "chosen_nll": 3.0})
    if start is not None:
        with pytest.raises(ValueError, match="are not the same model at the start"):
            objective.check({"loss": start + 0.5 * 3.0 + 0.03 * max(1.0, start), "chosen_nll": 3.0})
        Preferences(row, settings, 0.5, fresh=False).check({"loss": start + 9.0, "chosen_nll": 3.0})


def test_the_documents_name_every_loss() -> None:
    table = (
        (Path(__file__).parents[2] / "docs" / "stages.md")
        .read_text("utf-8")
        .partition("## Losses of pairs")[2]
    )
    rows_of_table = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    assert all(f"`{kind}`" in rows_of_table for kind in PREFERENCES)


def built(**keys: Any) -> DPOOptions:
    raw = {"stage": "dpo", "model_name_or_path": "m", "dataset": "d", **keys}
    made: DPOOptions = build(raw, CLASSES["dpo"], all_classes=CLASSES)[DPOOptions]
    return made


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"simpo_gamma": 1.2}, "`simpo_gamma` belongs to pref_loss: simpo, not to sigmoid"),
        ({"discopop_tau": 1.0, "pref_loss": "ipo"}, "`discopop_tau` belongs to pref_loss: discopop, not to ipo"),
        ({"label_smoothing": 0.1, "pref_loss": "ipo"}, "belongs to pref_loss: sigmoid or robust or exo_pair or"),
        ({"pref_loss": "exo_pair"}, "exo_pair needs `label_smoothing` above 0"),
        ({"cpo_alpha": 0.5}, "`cpo_alpha` cannot be taken over"),
    ],
)  # fmt: skip
def test_options_of_other_losses_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        built(**keys)
    assert words in str(error.value)


def test_the_names_of_other_tools() -> None:
    options = built(loss_type="simpo", simpo_gamma=1.2, beta=2.0, rpo_alpha=0.3)
    assert (options.pref_loss, options.pref_ftx) == ("simpo", 0.3)
    assert options.settings(2.0) == {"beta": 2.0, "gamma": 1.2}
    assert canonical({"stage": "dpo", "pref_ftx": 0.1})[0]["pref_ftx"] == 0.1


@pytest.mark.slow
def test_an_answer_is_learned_beside_its_pair(options: Make) -> None:
    """The nll of ORPO comes down, and `pref_ftx` adds to the loss what it says."""
    chosen = options("dpo", pref_loss="orpo", pref_ftx=0.5, max_steps=3, learning_rate=0.01)
    run(chosen)
    steps = [row for row in rows(chosen) if "loss" in row]
    assert steps[-1]["chosen_nll"] < steps[0]["chosen_nll"]
    plain = options("dpo", pref_loss="orpo", max_steps=1, output_dir=chosen["output_dir"] + "2")
    run(plain)
    first = next(row for row in rows(plain) if "loss" in row)
    assert steps[0]["loss"] - first["loss"] == pytest.approx(0.5 * first["chosen_nll"], rel=1e-4)
