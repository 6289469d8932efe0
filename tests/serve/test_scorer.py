"""A served reward model's numbers are those of its weights, read where it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from espalier.data.records import SYSTEM, USER, Message
from espalier.errors import UserError
from espalier.models.open import open_model
from espalier.serve.scorer import ServedScorer

TALK = [Message(SYSTEM, "Be kind."), Message(USER, "你好")]


@pytest.mark.parametrize("score_at", ["answer", None])
@torch.no_grad()
def test_scores_are_the_heads_of_the_last_token_that_is_read(
    reward_folder: Path, score_at: str | None
) -> None:
    opened = open_model(str(reward_folder), device="cpu")
    assert opened.scalar_head is not None and opened.tokenizer is not None
    opened.scalar_head.score_at = score_at
    scores = ServedScorer("judge", opened).score(TALK, ["Hello world", "today"])
    assert scores[0] != scores[1]
    for answer, score in zip(["Hello world", "today"], scores, strict=True):
        turns = [turn.as_turn() for turn in TALK] + [{"role": "assistant", "content": answer}]
        text = opened.tokenizer.apply_chat_template(turns, tokenize=False)
        if score_at == "answer":
            text = text.rstrip("\n")
        ids = torch.tensor([opened.tokenizer.encode(text, add_special_tokens=False)])
        hidden = opened.lm(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
        assert score == pytest.approx(float(hidden @ opened.scalar_head.weight[0]), abs=1e-4)


def test_what_is_too_long_or_no_reward_model_is_refused(folder: Path, reward_folder: Path) -> None:
    opened = open_model(str(reward_folder), device="cpu")
    with pytest.raises(UserError, match="whose context is 400"):
        ServedScorer("judge", opened).score(TALK, ["Hello " * 500])
    with pytest.raises(UserError, match="is no reward model"):
        ServedScorer("tiny", open_model(str(folder), device="cpu"))
    with torch.no_grad():
        opened.lm.get_input_embeddings().weight.fill_(torch.nan)  # type: ignore[operator]
    with pytest.raises(UserError, match="is no number"):
        ServedScorer("judge", replace(opened)).score(TALK, ["Hello"])
