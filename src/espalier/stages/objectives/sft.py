"""Supervised fine-tuning: every assistant turn of a conversation in one pass, its end token included."""

from __future__ import annotations

from functools import partial

from espalier.stages.next_token import next_token
from espalier.stages.stage import Stage

STAGE = Stage("chat", partial(next_token, kind="chat"))
