"""Supervised fine-tuning: every assistant turn of a conversation in one pass, its end token included; or the last only."""

from __future__ import annotations

from functools import partial

from espalier.config.options import TurnOptions
from espalier.stages.likelihood import LikelihoodOptions, likelihood
from espalier.stages.stage import Stage

STAGE = Stage("chat", partial(likelihood, reads="chat"), options=(LikelihoodOptions, TurnOptions))
