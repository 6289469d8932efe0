"""The preflight on a run's console, and of a stage whose model is not loaded (`espalier inspect CONFIG`).

What is looked at is in `espalier.data.preflight`.
"""

from __future__ import annotations

from espalier.data.preflight.findings import ERROR, HELD_OUT, TRAIN, WARNING, stop_at_errors
from espalier.data.preflight.run import PreflightReport
from espalier.data.preflight.text import lines
from espalier.screen import Screen
from espalier.stages.rollouts import longest_prompt
from espalier.stages.setup import Setup
from espalier.stages.stage import Stage

STYLES = {"": "dim", WARNING: "yellow"}


def show_preflight(
    console: Screen,
    name: str,
    report: PreflightReport,
    *,
    whole: bool = False,
    lead: str = "",
    quiet: bool = False,
) -> None:
    """Print a preflight, each line behind `lead` and the stage's name, and stop at its errors.

    whole: with a bar for each range of lengths; else a few lines. quiet: print nothing, only stop.

    Raises:
        UserError: the preflight has found errors.
    """
    for style, text in lines(report, whole=whole):
        if quiet or style == ERROR:
            continue  # told once, by the exception
        console.say(f"{lead}{name}: {text}" if name else f"{lead}{text}", STYLES[style])
    stop_at_errors(report.findings)


def read_as(stage: Stage, setup: Setup) -> None:
    """Read and tokenise the data as `stage` does when it is built, and nothing else of it."""
    train, held_out = setup.records(stage.reads)
    for records, part in ((train, TRAIN), (held_out, HELD_OUT)):
        if stage.reads == "prompt":
            setup.asks(records, longest_prompt(setup), part)
        else:
            setup.trees(
                records,
                part,
                answers_trained=stage.answers_trained,
                score_at=stage.score_at(setup.options),
                blanks=stage.blanks(setup),
            )
