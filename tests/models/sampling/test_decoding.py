"""Which way a model is stepped, and that the ways agree."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from espalier.models.adapters.kinds import add_lora
from espalier.models.probe import probe
from espalier.models.sampling.decoding import PACKED, ByHand, ByMemory, make_decoder
from espalier.models.sampling.generate import Sampling, sample
from espalier.models.sampling.own_cache import ByOwnCache

Tiny = Callable[..., nn.Module]
PROMPTS = [[5, 6, 7, 8, 33, 60], [5, 6, 7, 8, 9], [40]]
BY_HAND = ("llama", "qwen2", "qwen3", "mistral")


def make(tiny: Tiny, name: str) -> nn.Module:
    lm = tiny(name, **({"sliding_window": 64} if name == "mistral" else {}))
    for part, parameter in lm.named_parameters():
        if part.endswith(("bias", "norm.weight")):
            nn.init.normal_(parameter, 1.0, 0.3)
    return lm


@torch.no_grad()
@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("adapted", [False, True])
def test_blocks_by_hand_are_the_models_own(tiny: Tiny, name: str, adapted: bool) -> None:
    lm = make(tiny, name)
    traits = probe(lm)
    if adapted:
        lm = add_lora(lm, rank=2, alpha=None, dropout=0.5, target=None, bias="none").eval()
        for part, parameter in lm.named_parameters():
            if "lora_B" in part:
                nn.init.normal_(parameter, std=0.2)
    copies = PACKED if name == "llama" else 2  # with the head's weights packed, and without
    decoder = make_decoder(lm, traits, PROMPTS, copies, 4)
    assert isinstance(decoder, ByHand) and (decoder.head is decoder.inner.lm_head) == (name != "llama")
    ways = [decoder, ByMemory(lm, traits, PROMPTS, copies, 4), ByOwnCache(lm, PROMPTS, copies)]
    found = [way.prompt_logits() for way in ways]
    for step in range(4):
        for logits in found[1:]:
            torch.testing.assert_close(logits, found[0], rtol=1e-4, atol=1e-4)
        if step == 3:
            break
        tokens = torch.arange(len(found[0])) * 3 + 7 * step
        found = [way.next_logits(tokens, step) for way in ways]
        if step == 1:
            rows = torch.tensor([0, 4, 5])
            assert all(way.keep(rows) for way in ways)
            found = [logits[rows] for logits in found]


def kind(lm: nn.Module) -> type:
    return type(make_decoder(lm, probe(lm), PROMPTS, 1, 4))


def test_a_model_that_somebody_steps_into_runs_its_own_code(tiny: Tiny) -> None:
    assert kind(tiny("llama")) is ByHand
    assert kind(tiny("gpt2")) is ByMemory
    assert kind(tiny("bloom")) is ByOwnCache
    assert kind(tiny("mistral")) is ByOwnCache, "its window is shorter than the paths"
    hooked = tiny("llama")
    hooked.get_submodule("model.layers.0").register_forward_hook(lambda *_: None)
    assert kind(hooked) is ByMemory
    replaced = tiny("llama")
    layer = replaced.get_submodule("model.layers.1")
    layer.forward = layer.forward  # type: ignore[method-assign]
    assert kind(replaced) is ByMemory


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_under_autocast_the_logprobs_are_those_of_a_forward_under_autocast(tiny: Tiny, name: str) -> None:
    lm = tiny(name)
    traits = probe(lm)
    with torch.autocast("cpu", torch.bfloat16):
        found = sample(lm, traits, PROMPTS, Sampling(6), copies=2)
        for prompt, answers in zip(PROMPTS, found, strict=True):
            for answer in answers:
                ids = torch.tensor([prompt + answer.tokens])
                with torch.no_grad():
                    logits = lm(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
                truth = logits.float().log_softmax(-1).gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
                torch.testing.assert_close(torch.tensor(answer.logprobs), truth, rtol=0, atol=0.15)


def test_weights_that_have_changed_between_two_calls_are_the_new_ones(tiny: Tiny) -> None:
    lm = tiny("llama")
    traits = probe(lm)
    sampling = Sampling(5, temperature=0)
    before = sample(lm, traits, PROMPTS, sampling)
    with torch.no_grad():
        lm.get_output_embeddings().weight.neg_()  # type: ignore[operator]
    after = sample(lm, traits, PROMPTS, sampling)
    truth = sample(copy.deepcopy(lm), traits, PROMPTS, sampling)
    assert [a[0].tokens for a in after] == [a[0].tokens for a in truth]
    assert [a[0].tokens for a in after] != [a[0].tokens for a in before]
