"""Answers: choose among candidates by their logprobs, or write one.

Few-shot examples, question and candidates are one tree: what questions share is computed once in a row.
Prompt and candidate are encoded whole, and the candidate's tokens are those after the longest common prefix
with the prompt's own encoding; where the tokenizer merges across the boundary, the merged token is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from espalier.data.encoding import leading
from espalier.errors import UserError
from espalier.maths.reduce import masked_sum
from espalier.models.forward import TreeModel, Want
from espalier.models.generate import Sampling, sample
from espalier.trees import Tree, lay_out_padded, lay_out_tree, pack


@dataclass(frozen=True)
class Scored:
    """What a model says about one question's candidates.

    Attributes:
        scores: sum of the logprobs of the scored tokens of each candidate.
        tokens: how many they are.
    """

    scores: list[float]
    tokens: list[int]


@dataclass
class Cost:
    """Tokens computed, and what an evaluator that shares nothing would compute."""

    computed: int = 0
    unshared: int = 0


@dataclass(frozen=True)
class _Branches:
    """A question's candidates as token paths with their scored tokens flagged."""

    paths: list[tuple[list[int], list[bool]]]


def encode_candidates(tokenizer: Any, prompt: str, candidates: Sequence[str]) -> _Branches:
    """Whole sequences, each with the tokens flagged that are scored.

    Raises:
        UserError: a candidate that adds no token, or nothing before it.
    """
    bos = leading(tokenizer, prompt)
    whole = tokenizer([prompt, *(prompt + text for text in candidates)], add_special_tokens=False)[
        "input_ids"
    ]
    before, paths = bos + list(whole[0]), []
    for text, ids in zip(candidates, whole[1:], strict=True):
        full = bos + list(ids)
        shared = _agreement(before, full)
        if shared == len(full):
            raise UserError(f"the candidate {text!r} adds no token to its question, so it cannot be scored.")
        if shared == 0:
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            if start is None:
                raise UserError("nothing stands before a candidate: give the question some text.")
            full, shared = [start, *full], 1
        paths.append((full, [False] * shared + [True] * (len(full) - shared)))
    return _Branches(paths)


def choose(
    model: TreeModel,
    tokenizer: Any,
    questions: Sequence[tuple[str, Sequence[str]]],
    *,
    row_tokens: int = 4096,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[list[Scored], Cost]:
    """Score the candidates of each (whole prompt, candidates), in the order given.

    Args:
        model: of the forward; its traits say whether trees are laid out as trees.
        row_tokens: the most tokens of one forward (a single question may be longer).
        advance: told how many questions are done.
    """
    padded = model.traits.method == "padded"
    branches = [encode_candidates(tokenizer, prompt, texts) for prompt, texts in questions]
    groups = _groups(branches, row_tokens, padded)
    trees = [Tree.join([path for i in group for path in branches[i].paths]) for group in groups]
    sizes = [tree.n_path_tokens if padded else tree.n_tokens for tree in trees]
    found: list[Scored | None] = [None] * len(questions)
    cost = Cost()
    for row in pack(sizes, row_tokens):
        batch = (lay_out_padded if padded else lay_out_tree)([trees[i] for i in row])
        batch = batch.to(next(model.parameters()).device)
        with torch.no_grad():
            logprobs = model(batch, Want()).logprobs
        assert logprobs is not None
        mask = batch.mask
        sums, counts = masked_sum(logprobs, mask, 1).tolist(), mask.sum(1).tolist()
        cost.computed += batch.tokens_in_rows
        cost.unshared += batch.tokens_in_paths
        at = 0
        for question in (i for group in row for i in groups[group]):
            n = len(branches[question].paths)
            found[question] = Scored(sums[at : at + n], counts[at : at + n])
            at += n
        advance(sum(len(groups[group]) for group in row))
    return [scored for scored in found if scored is not None], cost


def _groups(branches: list[_Branches], row_tokens: int, padded: bool) -> list[list[int]]:
    """Questions that share a tree: neighbours with a common beginning, while the tree fits a row."""
    if padded:
        return [[i] for i in range(len(branches))]
    order = sorted(range(len(branches)), key=lambda i: branches[i].paths[0][0])
    groups: list[list[int]] = []
    size = 0
    for i in order:
        own = Tree.join(branches[i].paths).n_tokens
        shared = 0
        if groups:
            first = branches[groups[-1][0]].paths[0][0]
            shared = _agreement(first, branches[i].paths[0][0])
        if groups and shared > 1 and size + own - shared <= row_tokens:
            groups[-1].append(i)
            size += own - shared
        else:
            groups.append([i])
            size = own
    return groups


def _agreement(a: list[int], b: list[int]) -> int:
    """Length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def write_answers(
    model: TreeModel,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    stop: Sequence[str],
    end_tokens: tuple[int, ...],
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[list[str], Cost]:
    """The likeliest answer to each whole prompt, cut at the first stop string."""
    encoded = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    ids = [leading(tokenizer, text) + list(found) for text, found in zip(prompts, encoded, strict=True)]
    sampling = Sampling(max_new_tokens, 0.0, stop=end_tokens)
    texts, cost = [], Cost()
    for start in range(0, len(ids), 64):
        part = ids[start : start + 64]
        for (answer,) in sample(model.lm, model.traits, part, sampling):
            texts.append(_cut(tokenizer.decode(answer.tokens, skip_special_tokens=True), stop))
            cost.computed += len(answer.tokens)
        cost.computed += sum(map(len, part))
        advance(len(part))
    cost.unshared = cost.computed
    return texts, cost


def _cut(text: str, stop: Sequence[str]) -> str:
    text = text.lstrip()
    ends = [at for mark in stop if (at := text.find(mark)) >= 0]
    return text[: min(ends)] if ends else text
