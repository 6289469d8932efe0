"""Losses of preferences: what they are at the start, their slopes, and that numbers far out stay finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from espalier.maths import preferences
from espalier.maths.preferences import PREFERENCES

LN2 = math.log(2)
FURTHER = {"label_smoothing": 0.1, "gamma": 0.4, "tau": 0.7}
AT_START = {
    "sigmoid": LN2, "ipo": 4.0, "hinge": 1.0, "robust": LN2, "exo_pair": -LN2 - math.log(0.9 * 0.1) / 2,
    "apo_zero": 1.0, "apo_down": 1.0, "sigmoid_norm": LN2, "bco_pair": 2 * LN2, "nca_pair": 2 * LN2,
    "sppo_hard": 8.0, "discopop": LN2 / 2 + 0.5, "orpo": None, "simpo": None, "cpo": None,
}  # fmt: skip


def settings(kind: str, beta: float = 0.25) -> dict[str, float]:
    return {"beta": beta, **{name: FURTHER[name] for name in PREFERENCES[kind].takes}}


def test_the_table_is_known_by_hand() -> None:
    assert AT_START.keys() == PREFERENCES.keys()


@pytest.mark.parametrize("kind", PREFERENCES)
def test_where_policy_is_reference(kind: str) -> None:
    row, wanted = PREFERENCES[kind], AT_START[kind]
    assert row.at_start(**settings(kind)) == (None if wanted is None else pytest.approx(wanted, rel=1e-6))
    if wanted is not None:
        chosen, rejected = -torch.rand(6) * 50, -torch.rand(6) * 50
        loss = row.function(chosen, rejected, chosen, rejected, **settings(kind))
        torch.testing.assert_close(loss, torch.full((6,), wanted))


@pytest.mark.parametrize("kind", PREFERENCES)
def test_slopes_by_finite_differences_and_towards_the_chosen_answer(kind: str) -> None:
    four = [-torch.rand(7, dtype=torch.float64) * 3 - 0.1 for _ in range(4)]
    four = [x.requires_grad_() for x in four]
    function = PREFERENCES[kind].function
    assert gradcheck(lambda *x: function(*x, **settings(kind)), four)
    equal = torch.full((1,), -1.0)
    chosen, rejected = (torch.full((1,), -1.0, requires_grad=True) for _ in range(2))
    function(chosen, rejected, equal, equal, **settings(kind)).backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad - rejected.grad < 0, "a step widens the margin"


@pytest.mark.parametrize("kind", PREFERENCES)
@pytest.mark.parametrize("far", [-2e4, 2e4])
def test_far_from_the_reference_the_slope_is_finite(kind: str, far: float) -> None:
    """Of losses with bounded slopes; ipo and sppo_hard are squares, and discopop grows as exp(-h) by its definition."""
    if kind == "discopop" and far < 0:
        return
    chosen = torch.tensor([-1.0 if far > 0 else far], requires_grad=True)
    rest = [torch.tensor([x]) for x in (-far - 1 if far > 0 else -1.0, -1.0, -1.0)]
    PREFERENCES[kind].function(chosen, *rest, **settings(kind)).backward()
    assert chosen.grad is not None and torch.isfinite(chosen.grad).all()


def test_label_smoothing_mixes_the_two_orders() -> None:
    pc, pr, rc, rr = (torch.randn(5).double() for _ in range(4))
    right, flipped = preferences.dpo(pc, pr, rc, rr, 0.7), preferences.dpo(pr, pc, rr, rc, 0.7)
    torch.testing.assert_close(preferences.dpo(pc, pr, rc, rr, 0.7, 0.2), 0.8 * right + 0.2 * flipped)
    # Over labels of which a share e is flipped, the robust loss is the loss of clean labels.
    noisy = 0.8 * preferences.robust(pc, pr, rc, rr, 0.7, 0.2) + 0.2 * preferences.robust(
        pr, pc, rr, rc, 0.7, 0.2
    )
    torch.testing.assert_close(noisy, right)


def test_dpo_gradient_by_hand() -> None:
    """d loss / d chosen = -beta * sigmoid(-beta * margin): the equation below eq. 7 of Rafailov et al."""
    chosen, rejected = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    preferences.dpo(chosen, rejected, torch.zeros(4), torch.zeros(4), beta=0.3).sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    torch.testing.assert_close(chosen.grad, -0.3 * torch.sigmoid(-0.3 * (chosen - rejected)).detach())
    torch.testing.assert_close(chosen.grad, -rejected.grad)


def test_a_sure_answer_has_finite_odds() -> None:
    def loss(p: Tensor) -> Tensor:
        return preferences.orpo(p.log(), torch.tensor([0.5]).log(), p, p, beta=1.0)

    sure = torch.tensor([1.0])
    assert torch.isfinite(loss(sure)).all() and loss(sure) < loss(torch.tensor([0.9]))
