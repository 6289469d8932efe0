"""Documents beside the answers of PPO: in which order, at which temperature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.models.forward import Outputs, TreeModel, Want
from espalier.models.load import load_lm
from espalier.models.probe import probe
from espalier.stages.objectives.ppo import PolicyAndCritic
from espalier.stages.ptx import Documents, with_documents
from espalier.trees import Tree, lay_out_padded, lay_out_tree


def document(number: int) -> Tree:
    return Tree.from_path([number, 5, 6], [False, True, True])


def number_of(tree: Tree) -> int:
    ids, _ = tree.paths()[0]
    return int(ids[0])


def test_documents_come_in_shuffled_passes_and_the_same_again() -> None:
    documents = Documents([document(i) for i in range(10)], 0.5, seed=3)
    drawn = [number_of(tree) for start in range(0, 30, 3) for tree in documents.chosen(start, 3)]
    assert Counter(drawn) == dict.fromkeys(range(10), 3), "each once a pass"
    passes = [drawn[:10], drawn[10:20], drawn[20:]]
    assert list(range(10)) not in passes and passes[0] != passes[1] != passes[2]
    again = Documents([document(i) for i in range(10)], 0.5, seed=3)
    assert [number_of(tree) for tree in again.chosen(12, 9)] == drawn[12:21], "from any place on"
    assert [
        number_of(tree) for tree in Documents([document(i) for i in range(10)], 0.5, 4).chosen(0, 10)
    ] != passes[0]


@pytest.mark.parametrize("lay_out", [lay_out_tree, lay_out_padded])
def test_documents_are_trained_at_temperature_1_and_answers_at_their_own(
    lay_out: Callable[..., Any], world: Path
) -> None:
    lm = load_lm(str(world / "base"))
    model = TreeModel(lm, probe(lm))
    both = PolicyAndCritic(model, model)
    answers = Tree.join([([7, 8, 9, 10], [False, False, True, True]), ([7, 8, 11], [False, False, True])])
    zeros = {"ptx": torch.zeros(2)}
    batch = lay_out(with_documents([answers.with_extras(**zeros)], [document(3)], 0.5))

    def logprobs(module: Any, temperature: Any) -> torch.Tensor:
        outputs: Outputs = module(batch, Want(temperature=temperature))
        assert outputs.logprobs is not None
        return outputs.logprobs.detach()

    mixed, hot, own = logprobs(both, 0.5), logprobs(model, 0.5), logprobs(model, 1.0)
    is_document = batch.extras["ptx"] > 0
    assert is_document.tolist() == [False, False, True] and not torch.allclose(
        hot[is_document], own[is_document]
    )
    torch.testing.assert_close(mixed[is_document], own[is_document])
    torch.testing.assert_close(mixed[~is_document], hot[~is_document])
    with torch.no_grad():
        torch.testing.assert_close(logprobs(both, 0.5), mixed)
