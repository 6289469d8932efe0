"""Filled blanks through the forward, against the mask and the positions of the paper written out (Du et al. 2022)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.data.encode.blanks import BlankFilling, blanked
from espalier.models.forward import TreeModel, Want
from espalier.models.load import load_lm
from espalier.models.probe import probe
from espalier.trees.batch import lay_out_padded
from espalier.trees.tree import BLANK, Tree
from tests.conftest import Golden

BLANKS = BlankFilling(242, (240, 243, 241), 244, 245, (1.0, 1.0, 1.0), 0, frozenset({9}))
NAMES = ("glm", "chatglm")


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, golden: Golden) -> TreeModel:
    lm = load_lm(str(golden(request.param)))
    return TreeModel(lm, probe(lm)).eval()


def texts(blanks: BlankFilling, count: int = 8) -> list[Tree]:
    """Of 3 to 40 tokens, some of them with several blanks."""
    maker = torch.Generator().manual_seed(5)
    made = []
    for number in range(count):
        ids = torch.randint(5, 200, (3 + 5 * number,), generator=maker).tolist()
        ids[len(ids) // 2] = 9  # two sentences
        ((path, places),) = blanked([ids], str(number), blanks, 64, None)
        made.append(Tree.from_path(*path, extras={BLANK: torch.tensor([places], dtype=torch.float32)}))
    return made


def by_the_paper(lm: Any, tree: Tree) -> Tensor:
    """Logprobs of part B, one text at a time: what is read is A and, of each span, its start and its tokens."""
    ((ids, trained),) = tree.paths()
    row = ids.tolist()
    end = row.index(BLANKS.start)
    read, positions, targets = row[:end], [[at, 0] for at in range(end)], []
    places = iter(tree.extras[BLANK][0].long().tolist())
    at = end
    while at < len(row):
        stop = row.index(BLANKS.end, at)
        for number, token in enumerate(row[at:stop], start=1):  # <sop> s1 ... sm
            read.append(token)
            positions.append([next(places), number])
            targets.append(row[at + number])  # s1 ... sm <eop>
        at = stop + 1
    assert targets == [token for token, flag in zip(row, trained, strict=True) if flag]
    size = len(read)
    sees = torch.zeros(size, size, dtype=torch.bool)
    for query in range(size):
        for key in range(size):
            sees[query, key] = key < end or (query >= end and key <= query)
    mask = ~sees if lm.masks_are_of_the_hidden else sees
    logits = lm(
        input_ids=torch.tensor([read]),
        position_ids=torch.tensor(positions).T[None],
        attention_mask=mask[None, None],
    ).logits[0, end:]
    found: Tensor = logits.log_softmax(-1).gather(1, torch.tensor(targets)[:, None])[:, 0]
    return found


@torch.no_grad()
def test_the_forward_is_the_papers(model: TreeModel) -> None:
    trees = texts(BLANKS)
    batch = lay_out_padded(trees)
    logprobs = model(batch, Want()).logprobs
    assert logprobs is not None
    several = 0
    for branch, tree in enumerate(trees):
        wanted = by_the_paper(model.lm, tree)
        assert (logprobs[branch][: len(wanted)] - wanted).abs().max() < 1e-5
        several += len(set(tree.extras[BLANK][0].tolist())) > 1
    assert several > 2, "several blanks in a text are what this is about"
    # Each part of it is needed: the order of the blanks, the tokens that end spans unseen, part A both ways.
    first = batch.extras[BLANK]
    for other in (first.flip(1), torch.full_like(first, 1)):
        wrong = model(replace(batch, extras={BLANK: other}), Want()).logprobs
        assert wrong is not None and (wrong - logprobs).abs().max() > 1e-2
    causal = model(replace(batch, extras={}), Want()).logprobs
    assert causal is not None and (causal - logprobs).abs().max() > 1e-2


@torch.no_grad()
def test_what_ends_a_span_is_seen_by_nobody(model: TreeModel) -> None:
    """Another token in its place (with the same label) changes nothing; another token of the span does."""
    batch = lay_out_padded(texts(replace(BLANKS, shares=(1, 0, 0))))
    want = model(batch, Want()).logprobs
    ends = batch.input_ids == BLANKS.end
    changed = replace(batch, input_ids=torch.where(ends, 77, batch.input_ids))
    got = model(changed, Want()).logprobs
    assert want is not None and got is not None
    assert torch.allclose(got, want, atol=1e-6)
    before = replace(batch, input_ids=torch.where(ends.roll(-1, 1), 77, batch.input_ids))
    other = model(before, Want()).logprobs
    assert other is not None and (other - want).abs().max() > 1e-2


@torch.no_grad()
def test_one_blank_is_read_off_the_ids_alone(golden: Golden) -> None:
    """A document's end behind [gMASK] as training lays it out is what generation reads without positions."""
    lm = load_lm(str(golden("chatglm")))
    model = TreeModel(lm, probe(lm)).eval()
    blanks = replace(BLANKS, before=None, shares=(0, 0, 1), marks=(240, 240, 241))
    batch = lay_out_padded(texts(blanks, 4))
    with_places, without = (
        model(replace(batch, extras=extras), Want()).logprobs for extras in (batch.extras, {})
    )
    assert with_places is not None and without is not None
    assert torch.allclose(with_places, without, atol=1e-5)
    assert len(set(batch.extras[BLANK][batch.mask].tolist())) > 1


def test_gradients_flow_to_every_block(model: TreeModel) -> None:
    model.lm.zero_grad()
    logprobs = model(lay_out_padded(texts(BLANKS, 3)), Want()).logprobs
    assert logprobs is not None
    logprobs.sum().backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for n, p in model.lm.named_parameters() if "query_key_value.weight" in n]
    assert len(grads) == 3 and all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in grads)
