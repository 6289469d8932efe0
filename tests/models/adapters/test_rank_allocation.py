"""AdaLoRA's regulariser and its decisions against PEFT left to itself, and cut in the middle."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from espalier.errors import UserError
from espalier.models.adapters.kinds import add_adalora, add_lora
from espalier.models.adapters.rank_allocation import RankAllocation, adalora_models, orthogonality

Tiny = Callable[..., nn.Module]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def with_adalora(lm: nn.Module) -> Any:
    torch.manual_seed(0)
    return add_adalora(
        lm, first_rank=4, rank=2, alpha=None, dropout=0.0, target=None, beta=0.85, orthogonality=0.5
    )


def test_the_regulariser_is_what_peft_adds_to_a_loss(tiny: Tiny) -> None:
    lm = with_adalora(tiny("llama"))
    whole = lm(input_ids=IDS, labels=IDS)
    plain = nn.functional.cross_entropy(whole.logits[0, :-1], IDS[0, 1:])
    torch.testing.assert_close(orthogonality(lm), whole.loss - plain, rtol=1e-4, atol=1e-5)
    norms = []
    for name, p in lm.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            square = p @ p.T if ".lora_A." in name else p.T @ p
            norms.append((square - torch.eye(4)).square().sum().sqrt())
    assert float(orthogonality(lm)) == pytest.approx(0.5 * float(torch.stack(norms).mean()), rel=1e-5)


def steps(lm: Any, numbers: range, after: Callable[[int], None]) -> None:
    """A few steps of SGD, each with a batch of its own."""
    for step in numbers:
        lm.zero_grad()
        ids = torch.randint(3, 99, (1, 8), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(lm(input_ids=ids).logits[0, :-1], ids[0, 1:])
        loss.backward()
        with torch.no_grad():
            for p in lm.parameters():
                if p.requires_grad:
                    p -= 0.1 * p.grad
        after(step)


def trained(lm: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in lm.named_parameters() if p.requires_grad}


@pytest.mark.slow
def test_the_decisions_are_pefts_own_whole_and_continued(tiny: Tiny) -> None:
    base = tiny("llama")
    lm = with_adalora(copy.deepcopy(base)).train()
    ours = RankAllocation(lm, first=2, last=3, every=2)
    ours.begin(12)
    alone = with_adalora(copy.deepcopy(base)).train()
    settings = alone.active_peft_config
    settings.tinit, settings.tfinal, settings.deltaT, settings.total_step = 2, 3, 2, 12
    steps(alone, range(1, 13), alone.base_model.update_and_allocate)
    steps(lm, range(1, 6), ours.after_step)

    # what a checkpoint holds, put into a new model
    later = with_adalora(copy.deepcopy(base)).train()
    new = RankAllocation(later, first=2, last=3, every=2)
    new.begin(12)
    with torch.no_grad():
        for held, other in ((later, lm), (new, ours)):
            for p, q in zip(held.parameters(), other.parameters(), strict=True):
                p.copy_(q)
    new.restore(ours.state())
    for model, allocation in ((lm, ours), (later, new)):
        steps(model, range(6, 13), allocation.after_step)
        for name, tensor in trained(alone).items():
            assert torch.equal(dict(model.named_parameters())[name], tensor), name
        assert model.active_peft_config.rank_pattern == settings.rank_pattern
    kept = [sum(ranks) for ranks in settings.rank_pattern.values()]
    assert sum(kept) == 2 * 14
    values = [p for n, p in lm.named_parameters() if "lora_E" in n]
    assert sum(int((v != 0).sum()) for v in values) == 2 * 14


def test_what_is_found_and_what_is_refused(tiny: Tiny) -> None:
    lm = with_adalora(tiny("llama"))
    assert adalora_models(nn.ModuleList([lm])) == [lm]
    assert not adalora_models(tiny("gpt2"))
    assert not adalora_models(
        add_lora(tiny("gpt2"), rank=2, alpha=None, dropout=0.0, target=None, bias="none")
    )
    with pytest.raises(UserError, match="adalora_tinit 6 and adalora_tfinal 4 leave no step of 10"):
        RankAllocation(lm, first=6, last=4, every=1).begin(10)
    with pytest.raises(UserError, match="has to be above adalora_target_r 4"):
        add_adalora(
            tiny("gpt2"),
            first_rank=4,
            rank=4,
            alpha=None,
            dropout=0.0,
            target=None,
            beta=0.8,
            orthogonality=0.1,
        )
