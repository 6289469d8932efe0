"""Rewards by what a user writes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espalier.errors import UserError
from espalier.rollout.asked import Ask
from espalier.rollout.rewards.scorer import AnswerScorer, Failure, Means, silent
from espalier.rollout.rewards.table import KINDS, RewardSpec, read_specs

ASK = Ask([], "asked", "7", "f.jsonl:3", [{"role": "user", "content": "asked"}])


def spec_of(entry: Any) -> RewardSpec:
    specs, problems = read_specs([entry])
    if problems:
        raise UserError("\n".join(problems))
    return specs[0]


def scorer_of(entry: Any, means: Means | None = None) -> AnswerScorer:
    spec = spec_of(entry)
    build = KINDS[spec.kind].build
    assert build is not None
    return build(spec.settings, means or Means())


def scores(entry: Any, answers: Sequence[str], ask: Ask = ASK) -> list[float | Failure]:
    return list(scorer_of(entry)(ask, answers, silent))
