"""Encoder-decoders (T5, mT5, BART and kin) as models of rows: what is asked, a mark, what is answered.

A row of ids is what the encoder reads, its end token, the token that the decoder begins with, and the answer::

    ids        翻 译 ： 你 好 </s> <pad>  h  i  </s>
               `--- encoder ----´ `--- decoder ----´

The first start token that follows an end token is the border. So trees, losses, exams and sampling treat these
models like all others that run padded; equal prompts in a batch (the branches of a tree) are encoded once.
What is not done: a row is never a tree, and a text without an answer (pretraining) has no objective here.

A model is given this on top of its own class: with ``decoder_input_ids`` or ``labels``, and in transformers'
``generate``, it is what it was.

R rows, T tokens a row, E tokens that the encoder reads, D that the decoder reads, d hidden, P prompts, C copies.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from espalier.errors import UserError

_OWN = ("decoder_input_ids", "decoder_inputs_embeds", "encoder_outputs", "labels", "inputs_embeds")
"""With any of these a call is meant as transformers means it."""


def is_encoder_decoder(lm: nn.Module) -> bool:
    """Whether the model reads its prompt with one stack and answers with another."""
    config: Any = lm.config
    return bool(config.is_encoder_decoder)


def takes_rows(lm: Any) -> Any:
    """The same model, taught to take rows; its class keeps its name, so it is saved as what it was."""
    kind: Any = type(lm)
    lm.__class__ = _class_of_rows(kind)
    return lm


@functools.cache
def _class_of_rows(kind: Any) -> Any:
    @functools.wraps(kind.forward)
    def forward(self: Any, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        if input_ids is None or any(kwargs.get(name) is not None for name in _OWN):
            return kind.forward(self, input_ids, attention_mask, **kwargs)
        return _rows(self, functools.partial(kind.forward, self), input_ids, attention_mask)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _rows(lm: Any, run: Any, ids: Tensor, attention_mask: Tensor | None) -> Any:
    """Logits (R, T, V) that stand where a row's decoder tokens stand; those at its encoder's tokens mean nothing."""
    real = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    start = borders(lm.config, ids, real)
    lengths = real.sum(1)
    _check_length(lm.config, max(int(start.max()), int((lengths - start).max())))
    places = torch.arange(ids.shape[1], device=ids.device)
    if not torch.equal(real, places < lengths[:, None]):
        raise ValueError("rows of an encoder-decoder are padded on the right")
    inside = places < start[:, None]
    asked = torch.where(inside, ids, _pad(lm.config))[:, : int(start.max())]
    prompts, whose = torch.unique(torch.cat([start[:, None], asked], 1), dim=0, return_inverse=True)
    mask = (places[: asked.shape[1]] < prompts[:, :1]).long()
    hidden = lm.get_encoder()(input_ids=prompts[:, 1:], attention_mask=mask).last_hidden_state
    steps = torch.arange(int((lengths - start).max()), device=ids.device)
    at = start[:, None] + steps
    answered = at < lengths[:, None]
    at = at.clamp(max=ids.shape[1] - 1)
    answers = torch.where(answered, ids.gather(1, at), _pad(lm.config))
    flat = (torch.arange(len(ids), device=ids.device)[:, None] * ids.shape[1] + at)[answered]

    def spread(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(R, D, d) at the head's door to (R, T, d), each at its place in the row."""
        rows = args[0].new_zeros(ids.numel(), args[0].shape[-1])
        return (rows.index_put((flat,), args[0][answered]).view(*ids.shape, -1),)

    handle = lm.get_output_embeddings().register_forward_pre_hook(spread, prepend=True)
    try:
        return run(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden[whose]),
            attention_mask=mask[whose],
            decoder_input_ids=answers,
            use_cache=False,
        )
    finally:
        handle.remove()


def borders(config: Any, ids: Tensor, real: Tensor) -> Tensor:
    """(R,) the place of each row's start token.

    Args:
        config: of the model.
        ids: (R, T).
        real: (R, T) bool, false at padding.

    Raises:
        UserError: a row that has none.
    """
    end, start = _ends(config, ids), config.decoder_start_token_id
    begins = torch.zeros_like(real)
    begins[:, 1:] = end[:, :-1] & (ids[:, 1:] == start) & real[:, 1:]
    if not bool(begins.any(1).all()):
        raise UserError(
            f"{config.model_type}: a text without an answer's beginning. An encoder-decoder learns and is asked in "
            "questions with answers (sft, reward, dpo, ppo, grpo; `template: auto`), not in bare texts."
        )
    return begins.int().argmax(1)


def _check_length(config: Any, length: int) -> None:
    """BART has a table of positions for each stack; T5 knows distances only."""
    most = config.to_dict().get("max_position_embeddings")
    if most is not None and length > most:
        raise UserError(
            f"a question or an answer of {length} tokens, and {config.model_type} has {most} positions for each. Set "
            "a smaller cutoff_len, and overlong: drop or trim for what is longer."
        )


def _ends(config: Any, ids: Tensor) -> Tensor:
    ends = config.eos_token_id
    return torch.isin(ids, torch.tensor([ends] if isinstance(ends, int) else ends, device=ids.device))


def _pad(config: Any) -> int:
    return int(config.pad_token_id or 0)


class AnswerDecoder:
    """Sampling: each prompt is read by the encoder once for all its copies; see `decoding.Decoder`.

    Rows whose answers begin with as many given tokens go together, since a cache has one length. For the same
    reason no rows come in the place of others that have ended.
    """

    def __init__(self, lm: nn.Module, prompts: Sequence[Sequence[int]], copies: int) -> None:
        self.lm: Any = lm
        self.device = next(lm.parameters()).device
        config: Any = lm.config
        split = []
        for prompt in prompts:
            ids = torch.tensor([list(prompt)])
            at = int(borders(config, ids, torch.ones_like(ids, dtype=torch.bool)))
            split.append((list(prompt[:at]), list(prompt[at:])))
        alike: dict[int, list[int]] = {}
        for i, (_, given) in enumerate(split):
            alike.setdefault(len(given), []).append(i)
        self.groups = [_Group(self, split, members, copies) for members in alike.values()]

    def prompt_logits(self) -> Tensor:
        """(P * C, V)."""
        return self._gathered([group.step(group.given) for group in self.groups])

    def next_logits(self, tokens: Tensor, step: int) -> Tensor:
        """(B, V) after one more token a row."""
        return self._gathered([group.step(tokens[group.rows][:, None]) for group in self.groups])

    def keep(self, rows: Tensor) -> bool:
        """Go on with these rows (B',) alone."""
        place = {int(row): new for new, row in enumerate(rows)}
        for group in self.groups:
            group.keep(place)
        self.groups = [group for group in self.groups if len(group.rows)]
        return True

    def _gathered(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)[torch.cat([group.rows for group in self.groups]).argsort()]


class _Group:
    """Rows that go on from equally many tokens."""

    def __init__(
        self,
        answering: AnswerDecoder,
        split: list[tuple[list[int], list[int]]],
        members: list[int],
        copies: int,
    ) -> None:
        self.lm, device = answering.lm, answering.device
        width = max(len(split[i][0]) for i in members)
        asked = torch.full((len(members), width), _pad(self.lm.config))
        mask = torch.zeros_like(asked)
        for row, i in enumerate(members):
            asked[row, : len(split[i][0])] = torch.tensor(split[i][0])
            mask[row, : len(split[i][0])] = 1
        encoded = self.lm.get_encoder()(input_ids=asked.to(device), attention_mask=mask.to(device))
        self.hidden = encoded.last_hidden_state.repeat_interleave(copies, 0)
        self.mask = mask.to(device).repeat_interleave(copies, 0)
        given = torch.tensor([split[i][1] for i in members])
        self.given = given.to(device).repeat_interleave(copies, 0)
        self.rows = torch.tensor([i * copies + c for i in members for c in range(copies)], device=device)
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def step(self, tokens: Tensor) -> Tensor:
        """(rows of the group, V) after their next tokens (rows, n)."""
        out = self.lm(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.hidden),
            attention_mask=self.mask,
            decoder_input_ids=tokens,
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = out.logits[:, -1]
        return logits

    def keep(self, place: dict[int, int]) -> None:
        stay = torch.tensor([int(row) in place for row in self.rows], device=self.rows.device)
        self.rows = torch.tensor(
            [place[int(row)] for row in self.rows if int(row) in place],
            device=self.rows.device,
            dtype=torch.long,
        )
        self.hidden, self.mask = self.hidden[stay], self.mask[stay]
        if len(self.rows):
            self.cache.batch_select_indices(stay.nonzero()[:, 0])
