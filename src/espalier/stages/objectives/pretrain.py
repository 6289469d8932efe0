"""Continued pretraining, or pretraining from nothing: every token of every document but its first.

Documents are packed into rows and never see each other; one longer than a row is cut into pieces, none of
which is lost. GLM and ChatGLM-6B can learn to fill blanks instead (`espalier.data.encode.blanks`).
"""

from __future__ import annotations

from espalier.models.encoder_decoder import is_encoder_decoder
from espalier.models.tokenizers.marks import needs_marks
from espalier.stages.blanks import PretrainOptions, blank_filling, check_blanks
from espalier.stages.likelihood import LikelihoodOptions, likelihood
from espalier.stages.parts import Parts
from espalier.stages.setup import Setup
from espalier.stages.stage import Stage


def build(setup: Setup) -> Parts:
    blanks = blank_filling(setup)
    parts = likelihood(setup, "text", blanks=blanks)
    lm = parts.main.lm
    if blanks is not None:
        short, whole, rest = (share / sum(blanks.shares) for share in blanks.shares)
        setup.say(
            f"blanks are filled: {short:.0%} short spans, {whole:.0%} sentences, {rest:.0%} documents' ends"
        )
    elif needs_marks(lm) and not is_encoder_decoder(lm):
        setup.say(
            "this model was made by filling blanks and learns the next token here, without reading anything both ways; "
            "pretraining_objective: blank_filling goes on as it was made"
        )
    return parts


STAGE = Stage(
    "text", build, options=(LikelihoodOptions, PretrainOptions), blanks=blank_filling, check=check_blanks
)
