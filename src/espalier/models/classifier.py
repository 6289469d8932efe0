"""Sequence classifiers that read a prompt and an answer as text: encoders (BERT and its kin) as reward models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from espalier.errors import UserError
from espalier.models.positions.table import table_length
from espalier.models.tokenizers.load_tokenizer import load_tokenizer
from espalier.rendering import rendered

ROWS = 16
"""Padded rows of a forward."""


def is_encoder(name: str) -> bool:
    """Whether a model (a folder, or a hub id) is an encoder, which sees a whole text at once and writes none."""
    folder = Path(name)
    if folder.exists() and not (folder / "config.json").is_file():
        return False
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (ValueError, KeyError, OSError):  # a family that transformers does not know
        return False
    writes = config.to_dict().get("is_encoder_decoder") or config.to_dict().get("is_decoder")
    return not writes and type(config) in MODEL_FOR_MASKED_LM_MAPPING


class TextClassifier(nn.Module):
    """A classifier with one label, and its own tokenizer.

    Prompt and answer are its two texts, as such models are trained (segment A and B); where its tokenizer has a chat
    template, they are one text, written by that.

    Args:
        name: its folder or hub id.
        allow_pickle: whether weights may be read from .bin files where there are no safetensors.

    Raises:
        UserError: it has more labels than one, or no tokenizer.
    """

    def __init__(self, name: str, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> None:
        super().__init__()
        self.name = name
        self.tokenizer: Any = load_tokenizer(name, trust_remote_code=trust_remote_code)
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            name, trust_remote_code=trust_remote_code, use_safetensors=None if allow_pickle else True
        )
        if model.config.num_labels != 1:
            raise UserError(
                f"{name}: is a classifier with {model.config.num_labels} labels; wanted one label, whose number is the "
                "reward. Take another, or wrap it in a reward function of your own."
            )
        self.model = model.float().eval().requires_grad_(False)
        self.longest = table_length(model)

    @torch.no_grad()
    def forward(self, pairs: Sequence[tuple[list[dict[str, Any]], str]], sources: Sequence[str]) -> Tensor:
        """(N,) float32, the number of each (turns before the answer, answer).

        Args:
            sources: (N,) "FILE:LINE" of each, for errors.

        Raises:
            UserError: a row is longer than its position table.
        """
        scores = []
        device = next(self.model.parameters()).device
        for start in range(0, len(pairs), ROWS):
            part = pairs[start : start + ROWS]
            batch = self._encoded(part)
            width = int(batch["attention_mask"].sum(1).max())
            if self.longest is not None and width > self.longest:
                at = start + int(batch["attention_mask"].sum(1).argmax())
                raise too_long(self.name, sources[at], width, self.longest)
            rows = {key: value.to(device) for key, value in batch.items()}
            scores.append(self.model(**rows).logits[:, 0].float().cpu())
        return torch.cat(scores)

    def _encoded(self, pairs: Sequence[tuple[list[dict[str, Any]], str]]) -> dict[str, Tensor]:
        how: dict[str, Any] = {"padding": True, "return_tensors": "pt", "truncation": False, "verbose": False}
        how["padding_side"] = (
            "right"  # an encoder counts positions from the row's first token, padding or not
        )
        if self.tokenizer.chat_template:
            texts = [
                rendered(self.tokenizer, [*turns, {"role": "assistant", "content": answer}])
                for turns, answer in pairs
            ]
            return dict(self.tokenizer(texts, add_special_tokens=False, **how))
        asked = [_as_text(turns) for turns, _ in pairs]
        return dict(self.tokenizer(asked, [answer for _, answer in pairs], **how))


def _as_text(turns: Sequence[dict[str, Any]]) -> str:
    """One turn as it is; several with their roles before them."""
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def too_long(name: str, source: str, tokens: int, longest: int) -> UserError:
    """A row that a reward model has no positions for."""
    return UserError(
        f"{source}: prompt and answer are {tokens} tokens for the reward model {name}, and its position table has "
        f"{longest}. Lower max_prompt_length or max_new_tokens, or take a reward model with more positions."
    )
