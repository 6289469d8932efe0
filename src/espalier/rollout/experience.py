"""Experience: prompts become trees of sampled answers, and the trees carry what is known about them.

The loop of reinforcement learning in pieces, each usable alone: `sample_trees`, `measure` (old and
reference logprobs, values, scores, all by the same forward that is trained), and the advantages of
`espalier.maths`, which the stages put together. Every tensor rides on its tree as an extra, (B,) or (B, A)
of that tree, so that trees can be shuffled into other batches afterwards.

B branches, A trained tokens of the longest branch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from espalier.data.encode.scored import Closing, ScoreAt
from espalier.data.steps.feed import Rows
from espalier.models.forward import Traits
from espalier.models.sampling.generate import Completion, Sampling, sample
from espalier.rollout.asked import Ask
from espalier.trees import Batch, Tree


@dataclass(frozen=True)
class AnswerGroup:
    """A prompt with its sampled answers as a tree.

    Attributes:
        tree: branch i is answer i; every sampled token is trained, the stop token included.
        texts: the answers without special tokens.
        ended: whether each ended by itself.
    """

    ask: Ask
    tree: Tree
    texts: list[str]
    ended: list[bool]


def sample_trees(
    lm: nn.Module,
    traits: Traits,
    asks: Sequence[Ask],
    sampling: Sampling,
    decode: Callable[[list[int]], str],
    *,
    copies: int,
    seeds: Sequence[int],
    rows: int = 64,
) -> list[AnswerGroup]:
    """Sample `copies` answers to each prompt, `rows` at a time; the sampled ids are the trained ids."""
    answers = sample(
        lm, traits, [ask.tokens for ask in asks], sampling, copies=copies, seeds=seeds, rows=rows
    )
    return [answer_group(ask, samples, decode) for ask, samples in zip(asks, answers, strict=True)]


def answer_group(ask: Ask, answers: list[Completion], decode: Callable[[list[int]], str]) -> AnswerGroup:
    """A prompt and its answers as a tree."""
    before = [False] * len(ask.tokens)
    paths = [(ask.tokens + a.tokens, before + [True] * len(a.tokens)) for a in answers]
    tree = Tree.join(paths, source=ask.source)
    return AnswerGroup(ask, tree, [decode(a.tokens) for a in answers], [a.ended for a in answers])


def measure(trees: Sequence[Tree], rows: Rows, run: Callable[[Batch], dict[str, Tensor]]) -> list[Tree]:
    """Give every tree what `run` finds out about the batches that hold it.

    Each rank runs its own share, all the same number of batches; then every rank gets all trees.

    Args:
        trees: the same on every rank.
        rows: how they become batches.
        run: a batch to named (B,) or (B, A) tensors; without gradients.
    """
    numbered = [t.with_extras(index=torch.full((t.n_branches,), float(i))) for i, t in enumerate(trees)]
    measured: list[tuple[int, dict[str, Tensor]]] = []
    for batch in rows.micro_batches(numbered):
        tensors = run(batch)
        if batch.weight:
            measured += _by_tree(batch, tensors)
    if rows.world > 1:
        measured = gather_object(measured)
    extras = dict(measured)
    return [tree.with_extras(**extras[i]) for i, tree in enumerate(trees)]


def _by_tree(batch: Batch, tensors: dict[str, Tensor]) -> list[tuple[int, dict[str, Tensor]]]:
    """Cut a batch's tensors into those of its trees, each as wide as its own longest branch."""
    lengths = batch.mask.sum(1)
    cut = []
    for tree in range(batch.n_trees):
        mine = batch.tree_id == tree
        width = int(lengths[mine].max())
        index = int(batch.extras["index"][mine][0])
        own = {name: (x[mine, :width] if x.dim() == 2 else x[mine]).cpu() for name, x in tensors.items()}
        cut.append((index, own))
    return cut


def as_judged(answered: AnswerGroup, closing: Closing, score_at: ScoreAt) -> Tree:
    """The answers as a reward model was shown them in training, none of their tokens trained; the leaves are where it is
    read."""
    paths = []
    for (ids, _), ended in zip(answered.tree.paths(), answered.ended, strict=True):
        shown = closing.closed(ids.tolist(), ended, score_at)
        paths.append((shown, [False] * len(shown)))
    return Tree.join(paths, source=answered.ask.source)


def gathered(own: list[AnswerGroup], world: int) -> list[AnswerGroup]:
    """The answers of all ranks, rank by rank, on every rank."""
    return gather_object(own) if world > 1 else own


def whitened(trees: Sequence[Tree], name: str, *, shift_mean: bool = True) -> list[Tree]:
    """The (B, A) extra `name` of all trees together with variance 1 over the real tokens, and mean 0 on request."""
    from espalier.maths.reduce import whiten

    masks = [trained_mask(tree) for tree in trees]
    flat = torch.cat([tree.extras[name][mask] for tree, mask in zip(trees, masks, strict=True)])
    white = whiten(flat, torch.ones_like(flat, dtype=torch.bool), shift_mean)
    parts = torch.split(white, [int(mask.sum()) for mask in masks])  # type: ignore[no-untyped-call]
    return [
        tree.with_extras(**{name: torch.zeros_like(tree.extras[name]).masked_scatter(mask, part)})
        for tree, mask, part in zip(trees, masks, parts, strict=True)
    ]


def trained_mask(tree: Tree) -> Tensor:
    """(B, A) where the tree's trained tokens are."""
    lengths = torch.tensor([int(trained.sum()) for _, trained in tree.paths()])
    return torch.arange(int(lengths.max()))[None] < lengths[:, None]
