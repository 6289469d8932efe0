"""Texts as they are: the likelihood of each token, through a window that slides over what is longer than it.

A window moves on by half its length, so each token but those of the first window has at least half a window before
it. Every token counts once. Where the tokenizer puts no bos token before a text, the end token stands there, so the
first token counts too and bits per byte mean the same for every tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from espalier.data.encode.encoding import adds_bos, encode_texts
from espalier.errors import UserError
from espalier.exam.answers.scorer import ROW_TOKENS, Cost
from espalier.maths.reduce import masked_sum
from espalier.models.forward import TreeModel, Want
from espalier.models.load import context_length
from espalier.trees import Tree, lay_out_padded, lay_out_tree, pack


class Reader:
    """Reads texts with one model.

    Args:
        model, tokenizer: what reads.
        window: tokens that are seen at once; None: the model's context, at most 2048.
        stride: how far a window moves on; None: half of it.
    """

    def __init__(
        self, model: TreeModel, tokenizer: Any, *, window: int | None = None, stride: int | None = None
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.window = window or min(context_length(model.lm), 2048)
        self.stride = stride or max(1, self.window // 2)
        self._device = next(model.parameters()).device
        first = tokenizer.bos_token_id if adds_bos(tokenizer) else tokenizer.eos_token_id
        self._first = tokenizer.bos_token_id if first is None else first
        if self._first is None:
            raise UserError("the tokenizer has neither bos nor eos: nothing can stand before a text.")

    def read(self, texts: Sequence[str]) -> tuple[list[tuple[float, int, int]], Cost]:
        """Of each text: nats (minus the sum of its tokens' logprobs), tokens, UTF-8 bytes."""
        cost = Cost()
        encoded = encode_texts(self._tokenizer, texts)
        nats = [0.0] * len(texts)
        trees: list[Tree] = []
        whose: list[int] = []
        for i, ids in enumerate(encoded):
            for path in windows([self._first, *ids], self.window, self.stride):
                trees.append(Tree.from_path(*path))
                whose.append(i)
        padded = self._model.traits.method == "padded"
        lay_out = lay_out_padded if padded else lay_out_tree
        sizes = [tree.n_tokens for tree in trees]
        longest = max(sizes, default=0)
        room = max(ROW_TOKENS.get(self._device.type, 4096), longest)
        for row in pack([longest] * len(sizes) if padded else sizes, room):
            batch = lay_out([trees[at] for at in row])
            with torch.no_grad():
                logprobs = self._model(batch.to(self._device), Want()).logprobs
            sums = masked_sum(logprobs, batch.mask.to(self._device), 1).tolist()
            for branch, total in enumerate(sums):
                nats[whose[row[int(batch.tree_id[branch])]]] -= total
            cost.computed += batch.tokens_in_rows
            cost.unshared += batch.tokens_in_paths
        if not all(map(math.isfinite, nats)):
            raise UserError("the model gives logprobs that are no numbers: its weights are broken.")
        results = [
            (nats[i], len(ids), len(text.encode()))
            for i, (ids, text) in enumerate(zip(encoded, texts, strict=True))
        ]
        return results, cost


def windows(ids: Sequence[int], window: int, stride: int) -> Iterator[tuple[list[int], list[bool]]]:
    """Cuts of at most `window` tokens and which of them count; every token but the first counts once.

    >>> [(cut, sum(counts)) for cut, counts in windows([0, 1, 2, 3, 4, 5], 4, 2)]
    [([0, 1, 2, 3], 3), ([2, 3, 4, 5], 2)]
    """
    done = 1  # tokens that have counted, or need not
    while done < len(ids):
        stop = min(len(ids), window if done == 1 else done + stride)
        start = max(0, stop - window)
        yield list(ids[start:stop]), [at >= done for at in range(start, stop)]
        done = stop
