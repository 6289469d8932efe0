"""Logprobs and entropy by hand, and in chunks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from espalier.models import heads
from espalier.models.heads import ScalarHead, chunked_logprobs, label_logprobs


def test_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]).log()
    logprobs, entropy = label_logprobs(logits, torch.tensor([0, 0, 2]), 1.0, False)
    assert logprobs.tolist() == pytest.approx([math.log(0.5), 0.0, math.log(1 / 3)])
    assert entropy is None
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]).log()
    _, entropy = label_logprobs(logits, torch.tensor([0, 1]), 1.0, True)
    want = [1.5 * math.log(2), -(0.8 * math.log(0.8) + 0.2 * math.log(0.1))]
    assert entropy.tolist() == pytest.approx(want)


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([[2.0, 0.0]])
    for wanted in (False, True):
        cold, _ = label_logprobs(logits, torch.tensor([0]), 0.5, wanted)
        hot, _ = label_logprobs(logits, torch.tensor([0]), 2.0, wanted)
        assert cold.item() == pytest.approx(-math.log(1 + math.exp(-4)), rel=1e-4)
        assert hot.item() == pytest.approx(-math.log(1 + math.exp(-1)), rel=1e-4)


def test_a_smoothed_target_is_partly_the_mean_over_the_vocabulary() -> None:
    logits, labels = torch.randn(6, 9), torch.randint(9, (6,))
    plain = logits.log_softmax(-1)
    wanted = 0.8 * plain.gather(1, labels[:, None])[:, 0] + 0.2 * plain.mean(-1)
    torch.testing.assert_close(label_logprobs(logits, labels, 1.0, False, 0.2)[0], wanted)
    head = nn.Linear(9, 9, bias=False)
    head.weight.data = torch.eye(9)
    torch.testing.assert_close(chunked_logprobs(head, logits, labels, 1.0, False, 0.2)[0], wanted)


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("entropy", [False, True])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, entropy: bool, rows: int) -> None:
    head = nn.Linear(8, 20)
    hidden = torch.randn(13, 8, requires_grad=True)
    labels = torch.randint(20, (13,))

    def run() -> tuple[torch.Tensor, torch.Tensor | None, list[torch.Tensor]]:
        logprobs, entropies = chunked_logprobs(head, hidden, labels, 0.7, entropy)
        loss = (logprobs * torch.arange(13)).sum()
        if entropies is not None:
            loss = loss + (entropies * torch.arange(13).flip(0)).sum()
        return logprobs, entropies, list(torch.autograd.grad(loss, [hidden, *head.parameters()]))

    whole = run()
    sizes: list[int] = []
    head.register_forward_hook(lambda _module, args, _out: sizes.append(len(args[0])))
    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", rows * 20 + 5)
    parts = run()
    assert max(sizes) == rows
    torch.testing.assert_close(parts[0], whole[0])
    if entropy:
        torch.testing.assert_close(parts[1], whole[1])
    else:
        assert parts[1] is None
    torch.testing.assert_close(parts[2], whole[2])
    with torch.no_grad():
        torch.testing.assert_close(chunked_logprobs(head, hidden, labels, 0.7, entropy)[0], whole[0])


def test_scalar_head_starts_small_and_stays_in_float32() -> None:
    head = ScalarHead(4095)
    assert head.weight.std().item() == pytest.approx(1 / 4096, rel=0.05)
    assert head.bias is None
    hidden = torch.randn(3, 4095)
    want = hidden @ head.weight[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, want)
    assert head(hidden.half()).dtype == torch.float32
