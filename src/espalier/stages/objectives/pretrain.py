"""Continued pretraining, or pretraining from nothing: every token of every document but its first.

Documents are packed into rows and never see each other; one longer than a row is cut into pieces, none of
which is lost.
"""

from __future__ import annotations

from functools import partial

from espalier.stages.likelihood import LikelihoodOptions, likelihood
from espalier.stages.stage import Stage

STAGE = Stage("text", partial(likelihood, reads="text"), options=(LikelihoodOptions,))
