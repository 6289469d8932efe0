from __future__ import annotations

import math

import pytest
import torch

from espalier.maths import advantages as adv


def gae_by_double_loop(
    rewards: list[float], values: list[float], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """The definition as a sum, eq. 16: A_t = sum over l of (gamma lam)^l delta_{t+l}; one answer, no padding."""
    n = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    advantages = [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, n)) for t in range(n)]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_the_sum_of_the_paper(gamma: float, lam: float) -> None:
    lengths = [5, 1, 3, 0]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    rewards, values = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    advantages, returns = adv.gae(rewards, values, mask, gamma, lam)
    for b, n in enumerate(lengths):
        wanted = gae_by_double_loop(rewards[b, :n].tolist(), values[b, :n].tolist(), gamma, lam)
        assert advantages[b, :n].tolist() == pytest.approx(wanted[0])
        assert returns[b, :n].tolist() == pytest.approx(wanted[1])
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


@pytest.mark.parametrize("garbage", [1e9, float("inf"), float("nan")])
def test_padding_never_matters(garbage: float) -> None:
    mask = torch.arange(6) < torch.tensor([[5], [1], [3], [0]])
    rewards, values = torch.randn(4, 6), torch.randn(4, 6)
    clean = adv.gae(rewards, values, mask, 0.9, 0.9)
    dirty = adv.gae(rewards.masked_fill(~mask, garbage), values.masked_fill(~mask, garbage), mask, 0.9, 0.9)
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])
    scores = torch.randn(4)
    assert torch.equal(
        adv.token_rewards(rewards, scores, mask, 0.1, 1.0),
        adv.token_rewards(rewards.masked_fill(~mask, garbage), scores, mask, 0.1, 1.0),
    )


def test_a_hole_in_the_answer_is_stepped_over() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.25, 0.125]])
    holed = torch.tensor([[1.0, 77.0, 2.0, 3.0]]), torch.tensor([[0.5, 77.0, 0.25, 0.125]])
    mask = torch.tensor([[True, False, True, True]])
    plain, _ = adv.gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.9, 0.8)
    with_hole, _ = adv.gae(*holed, mask, 0.9, 0.8)
    assert torch.equal(with_hole[mask], plain[0])


def test_without_discount_the_return_is_the_sum_of_what_comes() -> None:
    mask = torch.ones(2, 4, dtype=torch.bool)
    rewards, values = torch.randn(2, 4), torch.randn(2, 4)
    _, returns = adv.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1))


def test_token_rewards_put_the_score_on_the_last_real_token() -> None:
    kl = torch.tensor([[1.0, 2.0, 3.0], [1.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    rewards = adv.token_rewards(kl, torch.tensor([0.5, -8.0, 3.0]), mask, kl_coef=0.1, score_clip=2.0)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, -0.2, 0.2], [-2.1, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    unclipped = adv.token_rewards(kl, torch.tensor([0.5, -8.0, 3.0]), mask, kl_coef=0.0, score_clip=None)
    assert unclipped.tolist() == [[0, 0, 0.5], [-8.0, 0, 0], [0, 0, 0]]


def test_kl_estimates_from_samples_of_the_policy_reach_the_true_kl() -> None:
    """Weighted by the policy's own probabilities, k1 and k3 are KL(policy || reference) exactly."""
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.4, 0.4, 0.2]).double()
    truth = sum(pi * math.log(pi / qi) for pi, qi in zip(p.tolist(), q.tolist(), strict=True))
    reverse = sum(qi * math.log(qi / pi) for pi, qi in zip(p.tolist(), q.tolist(), strict=True))
    assert truth != pytest.approx(reverse, rel=1e-3)
    for estimate, tolerance in ((adv.kl_k1, 1e-12), (adv.kl_k3, 1e-12)):
        assert (p * estimate(p.log(), q.log())).sum().item() == pytest.approx(truth, rel=tolerance)
    assert (adv.kl_k3(p.log(), q.log()) >= 0).all()


def test_k3_keeps_its_digits_where_policy_and_reference_are_close() -> None:
    k3 = adv.kl_k3(torch.tensor(-2.0), torch.tensor(-2.0 + 1e-3))
    assert k3.item() == pytest.approx(0.5e-6, rel=1e-2)


def test_groups_may_be_mixed_up_and_of_any_size() -> None:
    scores = torch.tensor([1.0, 5.0, 0.0, 7.0, 1.0, 5.0], dtype=torch.float64)
    tree_id = torch.tensor([4, 9, 4, 2, 4, 9])
    advantages = adv.group_advantages(scores, tree_id)
    members = scores[tree_id == 4]
    torch.testing.assert_close(advantages[tree_id == 4], (members - members.mean()) / (members.std() + 1e-4))
    assert advantages[[1, 3, 5]].tolist() == [0, 0, 0]  # equal scores, and a group of one
    assert (
        adv.dr_grpo_advantages(scores, tree_id)[tree_id == 4].tolist() == (members - members.mean()).tolist()
    )


def test_rloo_is_the_score_minus_the_mean_of_the_others() -> None:
    scores, tree_id = torch.randn(9, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 0])
    advantages = adv.rloo_advantages(scores, tree_id)
    for b in range(9):
        others = [scores[j].item() for j in range(9) if j != b and tree_id[j] == tree_id[b]]
        wanted = scores[b].item() - sum(others) / len(others) if others else 0.0
        assert advantages[b].item() == pytest.approx(wanted)


def test_adaptive_kl_moves_towards_its_target_and_not_too_fast() -> None:
    assert adv.adaptive_kl(0.2, kl=6.0, target=6.0, batch=64, horizon=1000) == 0.2
    assert adv.adaptive_kl(0.2, kl=6.6, target=6.0, batch=100, horizon=1000) == pytest.approx(0.2 * 1.01)
    assert adv.adaptive_kl(0.2, kl=600.0, target=6.0, batch=100, horizon=1000) == pytest.approx(0.2 * 1.02)
    assert adv.adaptive_kl(0.2, kl=0.0, target=6.0, batch=100, horizon=1000) == pytest.approx(0.2 * 0.98)


def test_adaptive_kl_never_pays_for_kl() -> None:
    """A rollout of many more answers than the horizon moves the coefficient by a fifth, and not through 0."""
    assert adv.adaptive_kl(0.2, kl=0.0, target=6.0, batch=60_000, horizon=1000) == pytest.approx(0.2 * 0.8)
    assert adv.adaptive_kl(0.2, kl=60.0, target=6.0, batch=60_000, horizon=1000) == pytest.approx(0.2 * 1.2)


@pytest.mark.parametrize("kind", adv.ADVANTAGES)
def test_equal_scores_have_no_advantage_at_all(kind: str) -> None:
    """Not even that of a mean that rounds to another number: divided by the spread, it would be a step of full size."""
    equal = torch.full((7,), 0.7)
    assert (equal.sum() / 7 != 0.7).any(), "the mean does round"
    assert not adv.ADVANTAGES[kind](equal, torch.zeros(7, dtype=torch.int64)).any()
    two = torch.cat([equal, torch.tensor([0.0, 1.0])])
    groups = torch.tensor([3] * 7 + [5] * 2)
    found = adv.ADVANTAGES[kind](two, groups)
    assert found[7:].abs().min() > 0.1
    assert (found[:7] != 0).all() == (kind == "reinforce_pp"), "which compares with all of the rollout"


@pytest.mark.parametrize("kind", ["batch", "reinforce_pp", "reinforce_pp_baseline"])
def test_advantages_over_the_rollout_by_a_plain_loop(kind: str) -> None:
    scores, groups = torch.randn(9, dtype=torch.float64), [0, 0, 0, 1, 1, 2, 2, 2, 2]
    means = {g: scores[[i for i in range(9) if groups[i] == g]].mean().item() for g in groups}
    centred = [scores[i].item() - means[groups[i]] for i in range(9)]
    spread = {"batch": scores.tolist(), "reinforce_pp": scores.tolist(), "reinforce_pp_baseline": centred}[
        kind
    ]
    mean = sum(spread) / 9
    deviation = math.sqrt(sum((x - mean) ** 2 for x in spread) / 8)
    top = scores - mean if kind == "reinforce_pp" else torch.tensor(centred)
    found = adv.ADVANTAGES[kind](scores, torch.tensor(groups))
    assert found.tolist() == pytest.approx((top / (deviation + 1e-4)).tolist())
