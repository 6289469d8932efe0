"""Rankings against permutations counted one by one, and the span in which two answers differ against a plain loop."""

from __future__ import annotations

import math
from itertools import permutations

import torch
from torch.autograd import gradcheck

from espalier.maths.losses import pairwise_log_sig
from espalier.maths.rankings import held_values, parted, plackett_luce, squared_error


def probability(scores: list[float], order: tuple[int, ...]) -> float:
    """That answers are drawn in this order, each among those that are left, with weights exp(score)."""
    p, left = 1.0, list(order)
    while left:
        p *= math.exp(scores[left[0]]) / sum(math.exp(scores[i]) for i in left)
        left = left[1:]
    return p


def test_plackett_luce_is_the_probability_of_the_order() -> None:
    scores, said = torch.randn(7, dtype=torch.float64), torch.tensor([2.0, 9.0, 1.0, 5.0, 3.0, 0.5, 7.0])
    trees = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    found = plackett_luce(scores, said, trees, 2)
    for tree, members in ((0, range(4)), (1, range(4, 7))):
        order = tuple(sorted(members, key=lambda i: -said[i].item()))
        assert math.isclose(found[tree].item(), -math.log(probability(scores.tolist(), order)))
        every = sum(probability(scores.tolist(), one) for one in permutations(members))
        assert math.isclose(every, 1.0)


def test_of_two_answers_it_is_the_loss_of_a_pair_and_equal_ones_are_not_compared() -> None:
    a, b, c = torch.randn(3, dtype=torch.float64)
    pair = plackett_luce(torch.stack([a, b]), torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), 1)
    torch.testing.assert_close(pair[0], pairwise_log_sig(a, b))
    tied = plackett_luce(torch.stack([a, b, c]), torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0, 0, 0]), 1)
    torch.testing.assert_close(tied[0], pairwise_log_sig(a, c) + pairwise_log_sig(b, c))


def test_slopes_by_finite_differences() -> None:
    said, trees = torch.tensor([2.0, 2.0, 1.0, 0.0, 4.0]), torch.tensor([0, 0, 0, 1, 1])
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)
    for function in (plackett_luce, squared_error):
        assert gradcheck(lambda x, function=function: function(x, said.double(), trees, 2), [scores])


def test_the_span_and_the_values_in_it_by_a_plain_loop() -> None:
    answers = [[5, 6, 7, 8], [5, 6, 9], [5, 6], [1], [5, 6, 7, 8, 2]]
    width = 5
    labels = torch.tensor([answer + [0] * (width - len(answer)) for answer in answers])
    lengths = torch.tensor([len(answer) for answer in answers])
    values, scores = torch.randn(5, width), torch.randn(5)
    held = held_values(values, scores, lengths)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    spans = parted(labels, lengths, *torch.tensor(pairs).T)
    for (i, j), span in zip(pairs, spans, strict=True):
        one, two = answers[i], answers[j]
        first = next(t for t in range(width) if one[t : t + 1] != two[t : t + 1])
        assert span.tolist() == [first <= t < max(len(one), len(two)) for t in range(width)]
    for i, answer in enumerate(answers):
        behind = [values[i, t + 1] if t + 1 < len(answer) else scores[i] for t in range(width)]
        assert held[i].tolist() == [float(v) for v in behind]
