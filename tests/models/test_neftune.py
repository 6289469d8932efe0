"""NEFTune's noise: its size by the paper's formula, and in training only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from espalier.models.forward import TreeModel, Want
from espalier.models.neftune import noisy_embeddings, path_lengths
from espalier.models.probe import probe
from espalier.trees import Batch, Tree, lay_out_padded, lay_out_tree
from tests.models.conftest import Tiny


def test_a_length_is_that_of_the_longest_path_of_a_tree_and_of_the_text_where_it_is_padded(
    trees: list[Tree],
) -> None:
    row = path_lengths(lay_out_tree(trees))[0].tolist()
    assert row == [length for tree in trees for length in [tree.longest_path] * tree.n_tokens]
    padded = lay_out_padded(trees)
    assert padded.attention_mask is not None
    lengths = path_lengths(padded)
    for mask, mine in zip(padded.attention_mask, lengths, strict=True):
        assert set(mine[mask].tolist()) == {float(mask.sum())}


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_noise_is_within_its_bound_fills_it_and_comes_in_training_only(
    tiny: Tiny, trees: list[Tree], layout: str
) -> None:
    lm = tiny("llama")
    batch: Batch = lay_out_tree(trees) if layout == "tree" else lay_out_padded(trees)
    model = TreeModel(lm, probe(lm, wanted=layout)).eval()
    plain = lm.get_input_embeddings()(batch.input_ids)
    with noisy_embeddings(lm, batch, alpha=5.0):
        noise: Tensor = lm.get_input_embeddings()(batch.input_ids) - plain
    share = noise.detach() / (5.0 / (path_lengths(batch) * 32).sqrt())[..., None]
    assert 0.95 < float(share.abs().max()) <= 1.0 + 1e-5
    assert abs(float(share.mean())) < 0.05 and float(share.var()) == pytest.approx(1 / 3, rel=0.1)

    def logprobs() -> Tensor:
        found = model(batch, Want()).logprobs
        assert found is not None
        return found.detach()

    quiet = logprobs()
    model.noise_alpha = 5.0
    assert torch.equal(logprobs(), quiet), "evaluating"
    model.train()
    assert float((logprobs() - quiet).abs().max()) > 1e-3
    assert not torch.equal(logprobs(), logprobs()), "another noise each time"
