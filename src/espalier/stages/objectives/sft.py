"""Supervised fine-tuning: every assistant turn of a conversation in one pass, its end token included; or the last only."""

from __future__ import annotations

from espalier.config.options import TurnOptions
from espalier.data.preflight.findings import HELD_OUT
from espalier.stages.parts import HeldOut, NextToken, Parts, validator
from espalier.stages.setup import Setup
from espalier.stages.stage import Stage


def build(setup: Setup) -> Parts:
    model = setup.load_policy()
    records, held_out = setup.records("chat")
    train, judged = setup.trees(records), setup.trees(held_out, HELD_OUT)
    return Parts(
        trained=model,
        main=model,
        objective=NextToken(),
        feed=lambda live: setup.dataset_feed(model, train),
        validate=validator(NextToken(), setup.judged(model, judged)),
        held_out=HeldOut("loss", "lower"),
        sample_prompts=setup.sample_prompts(held_out or records),
    )


STAGE = Stage("chat", build, (TurnOptions,))
