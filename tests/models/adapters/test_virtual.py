"""Virtual tokens against plain transformers, in both layouts, in training and in sampling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from espalier.models.adapters.adapter import kind_of
from espalier.models.adapters.kinds import add_p_tuning, add_prefix, add_prompt, check_virtual
from espalier.models.adapters.virtual import has_virtual_tokens, virtual_tokens
from espalier.models.forward import Traits, TreeModel, Want
from espalier.models.heads import ScalarHead
from espalier.models.load import context_length
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling, sample
from espalier.trees import Tree, lay_out_padded, lay_out_tree

Tiny = Callable[..., nn.Module]
TEXT = [11, 22, 33]
MAKERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "prompt": lambda lm: add_prompt(lm, tokens=3, text=TEXT),
    "p_tuning": lambda lm: add_p_tuning(lm, tokens=3, hidden_size=16),
    "prefix": lambda lm: add_prefix(lm, tokens=3, text=TEXT, projection=False, hidden_size=16),
    "projected": lambda lm: add_prefix(lm, tokens=3, text=None, projection=True, hidden_size=16),
}
FAMILIES = ["llama", "qwen3", "gpt2", "opt", "falcon", "glm", "mistral", "bloom"]


def moved(lm: nn.Module) -> nn.Module:
    maker = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=maker) * 0.2)
    return lm.eval()


def by_hand(lm: nn.Module, path: list[int]) -> Tensor:
    """(T, V) logits of one text after the virtual tokens, by the base model on inputs made by hand."""
    virtual = virtual_tokens(lm)
    assert virtual is not None
    base = lm.base_model
    if virtual.embeddings is not None:
        embedded = base.get_input_embeddings()(torch.tensor([path]))
        whole = torch.cat([virtual.embeddings[None], embedded], 1)
        return base(inputs_embeds=whole, use_cache=False).logits[0, virtual.length :]
    cache = DynamicCache()
    for i, (key, value) in enumerate(virtual.layers):
        cache.update(key[None], value[None], i)
    positions = torch.arange(len(path))[None] + virtual.length
    return base(
        input_ids=torch.tensor([path]),
        past_key_values=cache,
        position_ids=positions,
        attention_mask=torch.ones(1, virtual.length + len(path), dtype=torch.int64),
    ).logits[0]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_both_layouts_are_the_base_model_on_inputs_made_by_hand(
    tiny: Tiny, trees: list[Tree], name: str, kind: str
) -> None:
    lm = moved(MAKERS[kind](tiny(name)))
    traits = probe(lm)
    assert (traits.method == "padded") == (name == "bloom"), traits.reason
    head = ScalarHead(32)
    want = Want(scores=True, values=True, entropy=True)
    found = []
    for layout in (lay_out_padded, lay_out_tree) if traits.method != "padded" else (lay_out_padded,):
        chosen = traits if layout is lay_out_tree else probe(lm, wanted="padded")
        with torch.no_grad():
            found.append(TreeModel(lm, chosen, head)(layout(trees), want))
    for out in found[1:]:
        for key in ("logprobs", "scores", "values", "entropy"):
            torch.testing.assert_close(getattr(out, key), getattr(found[0], key), rtol=1e-4, atol=2e-5)
    row = 0
    for tree in trees:
        for tokens, trained in tree.paths():
            with torch.no_grad():
                logprobs = by_hand(lm, tokens.tolist()).log_softmax(-1)
            truth = [float(logprobs[i - 1, tokens[i]]) for i in range(len(tokens)) if trained[i]]
            torch.testing.assert_close(
                found[0].logprobs[row, : len(truth)], torch.tensor(truth), rtol=1e-4, atol=2e-5
            )
            row += 1


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "opt"])
def test_they_begin_as_a_text_that_has_been_read(tiny: Tiny, trees: list[Tree], name: str, kind: str) -> None:
    base = tiny(name)
    texts = [Tree.from_path([*TEXT, *t], [False] * 3 + f.tolist()) for tree in trees for t, f in tree.paths()]
    traits = probe(base, wanted="padded")
    with torch.no_grad():
        truth = TreeModel(base, traits)(lay_out_padded(texts), Want()).logprobs
        lm = MAKERS[kind](base).eval()
        found = TreeModel(lm, probe(lm))
        layout = lay_out_padded if found.traits.method == "padded" else lay_out_tree
        torch.testing.assert_close(found(layout(trees), Want()).logprobs, truth, rtol=1e-4, atol=2e-5)


def gradients(lm: nn.Module, traits: Traits, batch: object) -> list[Tensor]:
    lm.zero_grad()
    TreeModel(lm, traits)(batch, Want()).logprobs.sum().backward()  # type: ignore[arg-type, union-attr]
    return [p.grad.clone() for p in lm.parameters() if p.requires_grad and p.grad is not None]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_gradients_reach_the_virtual_tokens_alike_in_both_layouts(
    tiny: Tiny, trees: list[Tree], name: str, kind: str
) -> None:
    lm = moved(MAKERS[kind](tiny(name))).train()
    trained = [n for n, p in lm.named_parameters() if p.requires_grad]
    assert trained and all("prompt_encoder" in n for n in trained)
    padded = gradients(lm, probe(lm, wanted="padded"), lay_out_padded(trees))
    tree = gradients(lm, probe(lm), lay_out_tree(trees))
    assert len(tree) == len(trained) and all(g.any() for g in tree)
    torch.testing.assert_close(tree, padded, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_virtual_tokens_learn_what_to_say(tiny: Tiny, kind: str) -> None:
    lm = MAKERS[kind](tiny("llama")).train()
    model = TreeModel(lm, probe(lm))
    batch = lay_out_tree([Tree.from_path([5, 6, 7, 50 + i], [False] * 3 + [True]) for i in range(1)])
    optimizer = torch.optim.Adam([p for p in lm.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for _ in range(60):
        loss = -model(batch, Want()).logprobs.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.5 and losses[-1] < 0.25 * losses[0], losses[::10]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mistral"])
def test_sampling_is_the_forward_repeated(tiny: Tiny, name: str, kind: str) -> None:
    lm = moved(MAKERS[kind](tiny(name)))
    prompts = [[7, 8, 9, 10, 11], [12, 13], [40, 41, 42]]
    found = sample(lm, probe(lm), prompts, Sampling(6, 0.0, stop=(3,)), copies=2)
    for prompt, answers in zip(prompts, found, strict=True):
        text, logprobs = list(prompt), []
        for _ in range(6):
            with torch.no_grad():
                said = by_hand(lm, text)[-1].log_softmax(-1)
            text.append(int(said.argmax()))
            logprobs.append(float(said.max()))
            if text[-1] == 3:
                break
        for answer in answers:
            assert answer.tokens == text[len(prompt) :]
            assert answer.logprobs == pytest.approx(logprobs, abs=1e-4)


def test_a_model_is_asked_about_its_virtual_tokens(tiny: Tiny) -> None:
    lm = MAKERS["prompt"](tiny("llama"))
    assert has_virtual_tokens(lm) and kind_of(lm) == "prompt"
    assert context_length(lm) == 128 - 3
    with lm.disable_adapter():  # type: ignore[operator]
        assert not has_virtual_tokens(lm)
    assert not has_virtual_tokens(tiny("llama"))
    check_virtual(tiny("llama"), "prompt")
