"""Prompt and answer as the ids that GLM and ChatGLM-6B are trained on, and as whole inputs with masks.

Stages need the ids alone: the models read positions and masks off them (`espalier.models.legacy.prefix`), in the
padded layout, where each path is a row of its own. The tokenizers' chat templates write the same marks as text. These are what
both are compared with.

B rows, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from espalier.models.legacy.chatglm import ChatGLMConfig
from espalier.models.legacy.glm import GLMChineseConfig
from espalier.models.legacy.prefix import find_prefix, seen, two_channels

Path = tuple[list[int], list[bool]]
"""Ids, and which of them are trained."""


def glm_path(prompt: Sequence[int], answer: Sequence[int] | None, config: GLMChineseConfig) -> Path:
    """``[CLS] prompt [gMASK] <|endoftext|> <|startofpiece|> answer <|endofpiece|>``.

    Args:
        prompt: ids without special tokens, but for a blank of one's own, which then is the one that is filled.
        answer: ids; None gives what an answer is sampled after.

    Returns:
        The answer and its end are trained.
    """
    assert config.pad_token_id is not None, "a GLM's prompt ends with its padding token"
    own = any(token in config.blank_token_ids for token in prompt)
    asked = [
        config.cls_token_id,
        *prompt,
        *([] if own else [config.blank_token_ids[-1]]),
        config.pad_token_id,
    ]
    return _answered(asked, answer, config.bos_token_id, config.eos_token_id)


def chatglm_path(prompt: Sequence[int], answer: Sequence[int] | None, config: ChatGLMConfig) -> Path:
    """``prompt [gMASK] <sop> answer <eop>``; arguments and result as of `glm_path`."""
    own = any(token in (config.gmask_token_id, config.mask_token_id) for token in prompt)
    asked = [*prompt, *([] if own else [config.gmask_token_id])]
    return _answered(asked, answer, config.bos_token_id, config.eos_token_id)


def _answered(
    asked: list[int], answer: Sequence[int] | None, sop: int | None, eop: int | list[int] | None
) -> Path:
    assert isinstance(sop, int), "the configuration names no token that begins an answer"
    assert isinstance(eop, int), "the configuration names no single token that ends an answer"
    said = [] if answer is None else [*answer, eop]
    return [*asked, sop, *said], [False] * (len(asked) + 1) + [True] * len(said)


def whole_inputs(
    rows: Sequence[Sequence[int]],
    config: GLMChineseConfig | ChatGLMConfig,
    *,
    padding: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """What the model makes of rows of ids, written out as its original code takes it.

    Returns:
        input_ids (B, T); position_ids (B, 2, T); attention_mask (B, 1, T, T), 1 = seen for a GLM, and
        true = hidden for a ChatGLM.
    """
    width = max(map(len, rows))
    pad = config.pad_token_id or 0
    filled, kept = [], []
    for row in rows:
        missing = width - len(row)
        before, after = (missing, 0) if padding == "left" else (0, missing)
        filled.append([pad] * before + list(row) + [pad] * after)
        kept.append([False] * before + [True] * len(row) + [False] * after)
    ids, real = torch.tensor(filled), torch.tensor(kept)
    chatglm = isinstance(config, ChatGLMConfig)
    blanks = (
        [[config.gmask_token_id], [config.mask_token_id]]
        if isinstance(config, ChatGLMConfig)
        else [config.blank_token_ids]
    )
    prefix = find_prefix(ids, real, int(config.bos_token_id or -1), blanks)
    visible = seen(prefix.shared, real, 0) & real[:, None, :, None]
    return {
        "input_ids": ids,
        "position_ids": two_channels(prefix, real, 0),
        "attention_mask": ~visible if chatglm else visible.long(),
    }
