"""What the rest of Espalier must know of a training stage: one value, beside the objective that it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from espalier.config.option_set import OptionSet
from espalier.data.encode.blanks import BlankFilling
from espalier.data.encode.scored import ScoreAt
from espalier.stages.parts import Parts
from espalier.stages.setup import Setup


@dataclass(frozen=True)
class Stage:
    """A training stage.

    Attributes:
        reads: the kind of its records, one of `espalier.data.records.KINDS`.
        build: makes what the one loop needs.
        options: option classes of its own, beside those that every stage has.
        answers_trained: whether the tokens of answers are trained, so that a record without any is left out.
        score_at: where an answer's score is read with these options; None where it has none.
        blanks: how, with these options, texts are turned into blanks to fill; None where they are not.
        samples: whether it samples from the model that it trains; its options then hold `RolloutOptions`.
        reference: whether, with these options, the model is compared with what it was at the first step.
        check: refuses options that do not go together, by a `UserError`, before anything is loaded.
    """

    reads: str
    build: Callable[[Setup], Parts]
    options: tuple[type, ...] = ()
    answers_trained: bool = True
    score_at: Callable[[OptionSet], ScoreAt | None] = lambda options: None
    blanks: Callable[[Setup], BlankFilling | None] = lambda setup: None
    samples: bool = False
    reference: Callable[[OptionSet], bool] = lambda options: False
    check: Callable[[OptionSet], None] = lambda options: None
