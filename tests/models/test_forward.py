"""Tree layout = padded layout = one sequence at a time through the plain model, on every architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espalier.models.forward import Outputs, TreeModel, Want
from espalier.models.heads import ScalarHead
from espalier.models.load import checkpoint_activations
from espalier.models.probe import probe
from espalier.trees import Batch, Tree, lay_out_padded, lay_out_tree

Tiny = Callable[..., nn.Module]
TREES = ("llama", "qwen2", "qwen3", "gpt2", "opt", "falcon", "glm", "codegen", "mistral", "gemma2", "cohere")
PADDED = ("bloom", "mpt", "falcon-alibi")
NAMES = ("logprobs", "entropy", "values", "scores")
WANT = Want(logprobs=True, entropy=True, values=True, scores=True, temperature=0.8)


def one_at_a_time(lm: nn.Module, head: ScalarHead, trees: list[Tree], shape: tuple[int, int]) -> Outputs:
    """The truth: whole sequences without any mask, read with nothing but log_softmax."""
    taken: list[Tensor] = []
    output: Any = lm.get_output_embeddings()  # type: ignore[operator]
    handle = output.register_forward_pre_hook(lambda _module, args: taken.append(args[0]))
    grids: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    for tokens, trained in (path for tree in trees for path in tree.paths()):
        taken.clear()
        logits = lm(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0]
        logprobs = (logits / WANT.temperature).log_softmax(-1)
        hidden = taken[0][0]
        at = torch.from_numpy(trained.nonzero()[0])
        pad = (0, shape[1] - len(at))
        found = {
            "logprobs": logprobs[at - 1, torch.from_numpy(tokens)[at]],
            "entropy": -(logprobs.exp() * logprobs).sum(-1)[at - 1],
            "values": (hidden[at - 1] @ head.weight.T)[:, 0],
        }
        for name, value in found.items():
            grids[name].append(nn.functional.pad(value, pad))
        grids["scores"].append((hidden[-1] @ head.weight.T)[0])
    handle.remove()
    return Outputs(**{name: torch.stack(rows) for name, rows in grids.items()})


def loss_of(outputs: Outputs) -> Tensor:
    """A scalar with a different weight for each cell."""
    total = torch.zeros(())
    for i, name in enumerate(NAMES):
        value = getattr(outputs, name)
        weights = torch.rand(value.shape, generator=torch.Generator().manual_seed(i))
        total = total + (value * weights).sum()
    return total


def gradients(loss: Tensor, model: nn.Module, head: nn.Module) -> dict[str, Tensor]:
    for module in (model, head):
        module.zero_grad()
    loss.backward()
    found = {f"lm.{n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {**found, "head": head.weight.grad.clone()}  # type: ignore[operator,union-attr]


def assert_same_gradients(found: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    assert found.keys() == truth.keys()
    largest = max(float(g.abs().max()) for g in truth.values())
    for name, want in truth.items():
        # A gradient that is zero but for rounding (a key's bias) is measured against the others.
        size = max(float(want.abs().max()), 1e-2 * largest)
        assert float((found[name] - want).abs().max()) <= 1e-5 * size, name


def run(
    lm: nn.Module, head: ScalarHead, trees: list[Tree], *, layout: str
) -> tuple[TreeModel, Batch, Outputs]:
    model = TreeModel(lm, probe(lm, wanted="padded" if layout == "padded" else "auto"), head)
    batch = (lay_out_padded if model.traits.method == "padded" else lay_out_tree)(trees)
    return model, batch, model(batch, WANT)


@pytest.mark.parametrize("name", TREES + PADDED)
def test_all_layouts_are_one_sequence_at_a_time(tiny: Tiny, trees: list[Tree], name: str) -> None:
    head = ScalarHead(32)
    plain = tiny(name)
    shape = lay_out_tree(trees).shape
    truth = one_at_a_time(plain, head, trees, shape)
    wanted = gradients(loss_of(truth), plain, head)
    for layout in ("tree", "padded"):
        lm = copy.deepcopy(plain)
        model, batch, outputs = run(lm, head, trees, layout=layout)
        assert (model.traits.method != "padded") == (layout == "tree" and name in TREES)
        for what in NAMES:
            found, want = getattr(outputs, what), getattr(truth, what)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5, msg=lambda m, w=what: f"{w}: {m}")
            assert found.dim() == 1 or not found[~batch.mask].any(), "nothing outside of the mask"
        assert_same_gradients(gradients(loss_of(outputs), lm, head), wanted)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "falcon", "mistral"])
def test_checkpointed_activations_change_nothing(tiny: Tiny, trees: list[Tree], name: str) -> None:
    head = ScalarHead(32)
    plain = tiny(name)
    truth = one_at_a_time(plain, head, trees, lay_out_tree(trees).shape)
    wanted = gradients(loss_of(truth), plain, head)
    lm = copy.deepcopy(plain)
    model = TreeModel(lm, probe(lm), head).train()
    checkpoint_activations(lm)
    outputs = model(lay_out_tree(trees), WANT)
    assert_same_gradients(gradients(loss_of(outputs), lm, head), wanted)


def test_a_second_tree_before_the_backward_of_a_checkpointed_one_is_refused(
    tiny: Tiny, trees: list[Tree]
) -> None:
    """The pieces of one row are known at a time: what would be wrong without a word is an error."""
    lm = tiny("llama")
    model = TreeModel(lm, probe(lm)).train()
    checkpoint_activations(lm)
    first = model(lay_out_tree(trees), Want()).logprobs.sum()
    model(lay_out_tree(trees[1:]), Want())
    with pytest.raises(RuntimeError, match="backward"):
        first.backward()


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_only_what_is_wanted_is_computed(tiny: Tiny, trees: list[Tree], name: str) -> None:
    head = ScalarHead(32)
    _, _, everything = run(tiny(name), head, trees, layout="tree")
    lm = tiny(name)
    model = TreeModel(lm, probe(lm), head)
    batch = (lay_out_padded if model.traits.method == "padded" else lay_out_tree)(trees)
    rows: list[int] = []
    output: Any = lm.get_output_embeddings()  # type: ignore[operator]
    output.register_forward_hook(lambda _module, args, _out: rows.append(args[0].flatten(0, -2).shape[0]))
    scores = model(batch, Want(logprobs=False, scores=True))
    assert (scores.logprobs, scores.entropy, scores.values) == (None, None, None)
    torch.testing.assert_close(scores.scores, everything.scores)
    assert sum(rows) == 1, "the head is not run over a row for a score"
    rows.clear()
    model(batch, Want())
    assert sum(rows) <= batch.n_trained + 1, "prompt logits are never made"


def test_a_batch_without_trained_tokens_has_an_empty_grid(tiny: Tiny) -> None:
    lm = tiny("llama")
    model = TreeModel(lm, probe(lm), ScalarHead(32))
    outputs = model(lay_out_tree([Tree.from_path([5, 6], [False, False])]), Want(scores=True))
    assert outputs.logprobs.shape == (1, 0)
    assert outputs.scores.shape == (1,)


def test_values_without_a_head_are_refused(tiny: Tiny, trees: list[Tree]) -> None:
    lm = tiny("llama")
    with pytest.raises(ValueError, match="scalar head"):
        TreeModel(lm, probe(lm))(lay_out_tree(trees), Want(values=True))


def test_without_lm_head_freezes_only_an_output_head_of_its_own(tiny: Tiny) -> None:
    for tied in (False, True):
        lm = tiny("llama", tie_word_embeddings=tied)
        TreeModel(lm, probe(lm)).without_lm_head()
        output: Any = lm.get_output_embeddings()  # type: ignore[operator]
        assert output.weight.requires_grad is tied
