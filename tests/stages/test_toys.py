"""Each objective drives a toy to the optimum that is known on paper.

The toy is a table: the logits of an answer follow from the prompt's last token, a score or a value from one
token. So the optimum has a closed form, and only the objective stands between the data and it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espalier.maths.preferences import PREFERENCES
from espalier.maths.reduce import masked_sum
from espalier.models.forward import Outputs, Want
from espalier.stages.likelihood import NextToken
from espalier.stages.objectives import grpo, ppo
from espalier.stages.objectives.dpo import Preferences
from espalier.stages.objectives.reward import PairwiseReward
from espalier.stages.policy import PolicyOptions, PolicyTerms
from espalier.stages.ptx import with_documents
from espalier.stages.shaping import ShapingOptions, experience
from espalier.trees import Batch, Tree, lay_out_tree

PROMPT, ACTIONS = 0, 4
REWARDS = torch.tensor([0.0, 0.3, 1.0, 0.6], dtype=torch.float64)
START = torch.tensor([0.5, 0.0, -0.5, 0.3], dtype=torch.float64)


class Table(nn.Module):
    """Logits by the token before, a value by the token before, a score by the last token; in float64."""

    def __init__(self, size: int = ACTIONS) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(size, size, dtype=torch.float64))
        self.values = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.scores = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, batch: Batch, want: Want) -> Outputs:
        ids = batch.input_ids.flatten()
        parents = ids[batch.read_at]
        every = self.logits[parents].log_softmax(-1)
        logprobs = every.gather(1, batch.labels[:, None])[:, 0]
        return Outputs(
            logprobs=batch.grid(logprobs) if want.logprobs else None,
            entropy=batch.grid(-(every.exp() * every).sum(-1)) if want.entropy else None,
            values=batch.grid(self.values[parents]) if want.values else None,
            scores=self.scores[ids[batch.leaf_at]] if want.scores else None,
        )

    @property
    def probs(self) -> Tensor:
        """Of the answers to the prompt."""
        return self.logits.detach()[PROMPT].softmax(-1)


def terms(price: float, **chosen: Any) -> PolicyTerms:
    """GRPO's terms, with changes."""
    return PolicyTerms(PolicyOptions(**{"kl_in": "loss", "kl_estimator": "k3", **chosen}), lambda: price)


def fit(
    model: nn.Module, objective: Any, batch: Batch, *, steps: int = 400, rate: float = 0.1
) -> list[dict[str, float]]:
    """Minimise an objective over one batch; the numbers of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    told = []
    for _ in range(steps):
        loss, numbers = objective.loss(model(batch, objective.want), batch)
        optimizer.zero_grad()
        (loss / objective.count(batch)).backward()
        optimizer.step()
        told.append(
            {name: float(total) / float(weight) for name, (total, weight) in numbers.items() if weight}
        )
    return told


def pair(better: int, worse: int, **extras: Tensor) -> Tree:
    paths = [([PROMPT, PROMPT, answer], [False, False, True]) for answer in (better, worse)]
    made = Tree.join(paths)
    return Tree(made.tokens, made.trained, made.children, made.ends, made.source, extras)


@pytest.mark.slow
def test_next_token_learns_the_frequencies_and_its_loss_is_their_entropy() -> None:
    text = [0, 1, 0, 1, 0, 2, 1, 1, 0, 3, 3, 0, 1, 2, 2]
    batch = lay_out_tree([Tree.from_path(text, [False] + [True] * (len(text) - 1))])
    model = Table()
    told = fit(model, NextToken(), batch, steps=1500)
    counts = torch.zeros(ACTIONS, ACTIONS, dtype=torch.float64)
    for before, after in itertools.pairwise(text):
        counts[before, after] += 1
    frequencies = counts / counts.sum(1, keepdim=True)
    torch.testing.assert_close(model.logits.detach().softmax(-1), frequencies, rtol=0, atol=3e-3)
    entropy = -(counts * frequencies.clamp(min=1e-12).log()).sum() / counts.sum()
    assert told[-1]["loss"] == pytest.approx(float(entropy), abs=3e-3)


def preferences(wins: dict[tuple[int, int], int]) -> Batch:
    """`wins[a, b]`: how many people preferred a to b; with the reference's logprobs."""
    ref = START.log_softmax(-1)
    trees = [
        pair(a, b, ref_logprobs=torch.stack([ref[a], ref[b]])[:, None])
        for (a, b), times in wins.items()
        for _ in range(times)
    ]
    return lay_out_tree(trees)


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_reaches_the_preference_probability(smoothing: float) -> None:
    """At the optimum sigmoid(beta * (log ratio of policies)) is the share of people who preferred the answer."""
    beta, model = 0.5, Table()
    wins = {(0, 1): 3, (1, 0): 1, (2, 3): 2, (3, 2): 3}
    settings = {"beta": beta, "label_smoothing": smoothing}
    objective = Preferences(PREFERENCES["sigmoid"], settings, 0.0, fresh=False)
    told = fit(model, objective, preferences(wins), steps=1500)
    gained = model.probs.log() - START.log_softmax(-1)
    for (a, b), share in (((0, 1), 3 / 4), ((3, 2), 3 / 5)):
        wanted = share * (1 - smoothing) + (1 - share) * smoothing
        assert torch.sigmoid(beta * (gained[a] - gained[b])).item() == pytest.approx(wanted, abs=1e-3)
    assert told[-1]["accuracy"] == pytest.approx(6 / 9), "the majority of each pair wins"


@pytest.mark.slow
def test_ipo_stops_at_its_margin() -> None:
    """Azar et al. 2023: the log ratio comes to 1 / (2 beta) and no further, though the pair is always won."""
    beta, model = 0.4, Table()
    objective = Preferences(PREFERENCES["ipo"], {"beta": beta}, 0.0, fresh=False)
    fit(model, objective, preferences({(2, 0): 3}), steps=1500)
    gained = model.probs.log() - START.log_softmax(-1)
    assert (gained[2] - gained[0]).item() == pytest.approx(1 / (2 * beta), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["log_sig", "log_exp"])
def test_reward_differences_are_the_log_odds_of_winning(loss: str) -> None:
    """Bradley & Terry 1952: score(a) - score(b) = log(wins / losses)."""
    said = {(0, 1): 4, (1, 0): 1, (2, 3): 1, (3, 2): 2}
    trees = [
        pair(a, b, preference=torch.tensor([1.0, 0.0]))
        for (a, b), times in said.items()
        for _ in range(times)
    ]
    model = Table()
    fit(model, PairwiseReward(loss, fresh=True), lay_out_tree(trees), steps=800)
    scores = model.scores.detach()
    assert (scores[0] - scores[1]).item() == pytest.approx(math.log(4), abs=1e-3)
    assert (scores[3] - scores[2]).item() == pytest.approx(math.log(2), abs=1e-3)


def test_separable_pairs_and_rankings_come_in_the_right_order() -> None:
    paths = [([PROMPT, answer], [False, True]) for answer in (1, 3, 0, 2)]
    ranking = Tree.join(paths)
    said = torch.tensor([0.2, 0.9, 0.2, 0.5])  # 3 above 2 above 0 and 1, which are equal
    tree = Tree(ranking.tokens, ranking.trained, ranking.children, ranking.ends, "", {"preference": said})
    model = Table()
    told = fit(model, PairwiseReward("log_sig", fresh=True), lay_out_tree([tree]), steps=300)
    scores = model.scores.detach()
    assert scores[3] > scores[2] + 1 and scores[2] > scores[[0, 1]].max() + 1
    assert told[0]["accuracy"] == 0.0 and told[-1]["accuracy"] == 1.0 and told[-1]["loss"] < 0.05
    assert scores[0].item() == pytest.approx(scores[1].item(), abs=1e-9), "equal scores make no pair"


SAMPLES = 32
FOREST = [Tree.join([([1, PROMPT, 0], [False, False, True])] * SAMPLES)]


def bandit(
    model: Table, objective: Any, feed: Callable[[Tensor, Tensor], dict[str, Tensor]], steps: int, rate: float
) -> Tensor:
    """Answers of one token to one prompt, drawn anew at every step; the mean policy of the last third."""
    maker = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    kept = []
    for step in range(steps):
        actions = torch.multinomial(model.probs, SAMPLES, True, generator=maker)
        extras = feed(actions, model.probs.log()[actions][:, None])
        batch = replace(lay_out_tree(FOREST), labels=actions, extras=extras)
        loss, _ = objective.loss(model(batch, objective.want), batch)
        optimizer.zero_grad()
        (loss / objective.count(batch)).backward()
        optimizer.step()
        if step >= 2 * steps // 3:
            kept.append(model.probs)
    return torch.stack(kept).mean(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [{}, {"policy_loss": "cispo"}, {"importance_sampling_level": "sequence"}, {"advantages": "reinforce_pp"}],
)
def test_grpo_without_a_price_of_kl_takes_the_best_arm(rows: dict[str, Any]) -> None:
    model = Table()
    options = grpo.GRPOOptions(**rows)

    def feed(actions: Tensor, old: Tensor) -> dict[str, Tensor]:
        scores = REWARDS[actions]
        advantages = grpo.ADVANTAGES[options.advantages](scores, torch.zeros(SAMPLES, dtype=torch.int64))
        return {"old_logprobs": old, "ref_logprobs": old, "scores": scores, "advantages": advantages}

    found = bandit(model, grpo.GroupObjective(options, 8, terms(0.0)), feed, 300, 1.0)
    assert found.argmax() == REWARDS.argmax() and found.max() > 0.95


@pytest.mark.slow
def test_a_teacher_s_distribution_is_the_end_of_distillation() -> None:
    """The reverse KL has its least value, 0, where the policy says what the teacher says, whatever it began as."""
    model, teacher = Table(), START.softmax(-1)

    def feed(actions: Tensor, old: Tensor) -> dict[str, Tensor]:
        zeros = torch.zeros(SAMPLES, dtype=old.dtype)
        kl = old - teacher.log()[actions][:, None]
        return {
            "old_logprobs": old,
            "ref_logprobs": old,
            "scores": zeros,
            "advantages": zeros,
            "teacher_kl": kl,
        }

    before = model.probs
    found = bandit(model, grpo.GroupObjective(grpo.GRPOOptions(), 8, terms(0.0)), feed, 300, 0.5)
    assert (before - teacher).abs().max() > 0.1
    torch.testing.assert_close(found, teacher, rtol=0, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("average", ["token", "answer"])
def test_grpo_with_a_price_of_kl_stops_where_theory_says(average: Any) -> None:
    """The slope of k3 under fresh samples is that of KL(ref || policy), so with centred advantages
    p(a) * (r(a) - mean r) = c * (p(a) - ref(a)) at the end: p(a) = c ref(a) / (x - r(a)), x from the sum."""
    price, ref = 0.5, START.softmax(-1)
    low, high = REWARDS.max().item() + 1e-9, REWARDS.max().item() + 10
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (price * ref / (middle - REWARDS)).sum() > 1 else (low, middle)
    wanted = price * ref / (low - REWARDS)
    model = Table()
    model.logits.data[PROMPT] = START

    def feed(actions: Tensor, old: Tensor) -> dict[str, Tensor]:
        scores = REWARDS[actions]
        advantages = grpo.ADVANTAGES["dr_grpo"](scores, torch.zeros(SAMPLES, dtype=torch.int64))
        ref_logprobs = ref.log()[actions][:, None]
        return {"old_logprobs": old, "ref_logprobs": ref_logprobs, "scores": scores, "advantages": advantages}

    options = grpo.GRPOOptions(loss_average=average)
    found = bandit(model, grpo.GroupObjective(options, 8, terms(price)), feed, 400, 0.4)
    assert (wanted - ref).abs().max() > 0.1, "the reward must matter"
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen", [{"kl_estimator": "k2"}, {"kl_in": "reward", "kl_estimator": "k1"}], ids=["loss", "reward"]
)
def test_grpo_can_pay_the_reverse_kl(chosen: dict[str, Any]) -> None:
    """Liu et al. 2025 ("Rethinking KL Regularization in RLHF"): k2 in the loss, and k1 in the reward, have the slope of
    KL(policy || ref), and end at ref * exp(r / c), where k3 in the loss does not."""
    price, ref = 0.5, START.softmax(-1)
    wanted = (ref.log() + REWARDS / price).softmax(-1)
    model = Table()
    model.logits.data[PROMPT] = START
    own = terms(price, **chosen)

    def feed(actions: Tensor, old: Tensor) -> dict[str, Tensor]:
        known = {"old_logprobs": old, "ref_logprobs": ref.log()[actions][:, None], "scores": REWARDS[actions]}
        tree = replace_extras(FOREST[0], known)
        (made,) = grpo.with_advantages([tree], grpo.ADVANTAGES["dr_grpo"], own)
        return {**known, "advantages": made.extras["advantages"]}

    found = bandit(model, grpo.GroupObjective(grpo.GRPOOptions(), 8, own), feed, 400, 0.4)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)


@pytest.mark.slow
def test_an_entropy_bonus_ends_at_the_softmax_of_rewards() -> None:
    """The optimum of E[r] + c H(policy) is exp(r / c), normalised (Ziebart 2010)."""
    model, price = Table(), 0.5

    def feed(actions: Tensor, old: Tensor) -> dict[str, Tensor]:
        scores = REWARDS[actions]
        advantages = grpo.ADVANTAGES["dr_grpo"](scores, torch.zeros(SAMPLES, dtype=torch.int64))
        return {"old_logprobs": old, "ref_logprobs": old, "scores": scores, "advantages": advantages}

    objective = grpo.GroupObjective(grpo.GRPOOptions(), 8, terms(0.0, entropy_coef=price))
    found = bandit(model, objective, feed, 400, 0.4)
    wanted = (REWARDS / price).softmax(-1)
    assert (wanted - 0.25).abs().max() > 0.2
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)


@pytest.mark.slow
def test_ppo_stops_at_the_reference_tilted_by_the_reward() -> None:
    """The optimum of E[r] - c KL(policy || ref) is ref * exp(r / c), normalised (Ziegler et al. 2019)."""
    price, ref = 0.5, START.softmax(-1)
    wanted = (ref.log() + REWARDS / price).softmax(-1)
    model = Table()
    model.logits.data[PROMPT] = START
    own = terms(price, kl_in="reward", kl_estimator="k1")

    def feed(actions: Tensor, old: Tensor) -> dict[str, Tensor]:
        extras = {
            "old_logprobs": old,
            "ref_logprobs": ref.log()[actions][:, None],
            "old_values": model.values.detach()[PROMPT].expand(SAMPLES, 1),
            "scores": REWARDS[actions],
            "shaped": REWARDS[actions],
        }
        tree = replace_extras(FOREST[0], extras)
        made = experience([tree], ShapingOptions(reward_clip=None), own)
        return lay_out_tree(made).extras

    found = bandit(model, ppo.ClippedObjective(ppo.Weights(value=0.5), own), feed, 400, 0.15)
    assert (wanted - ref).abs().max() > 0.2, "the reward must matter"
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.03)
    value = (wanted * (REWARDS - price * (wanted / ref).log())).sum()
    assert model.values[PROMPT].item() == pytest.approx(value.item(), abs=0.05)


def replace_extras(tree: Tree, extras: dict[str, Tensor]) -> Tree:
    return replace(tree, extras=extras)


@pytest.mark.slow
def test_ppo_with_documents_also_learns_them() -> None:
    """The ptx loss alone (no reward, nothing to gain) moves the policy to the frequencies of the documents."""
    answers = [replace_extras(FOREST[0], {
        name: torch.zeros(SAMPLES, 1) for name in ("old_values", "returns", "advantages", "kl", "ref_logprobs")
    } | {"shaped": torch.zeros(SAMPLES), "old_logprobs": torch.full((SAMPLES, 1), -math.log(ACTIONS)), "scores": torch.zeros(SAMPLES), "ptx": torch.zeros(SAMPLES)})]  # fmt: skip
    documents = [Tree.from_path([PROMPT, answer], [False, True]) for answer in (1, 1, 1, 2)]
    mixed = with_documents(answers, documents, 0.3)
    batch = lay_out_tree(mixed)
    model = Table()
    told = fit(model, ppo.ClippedObjective(ppo.Weights(), terms(0.0)), batch, steps=800)
    torch.testing.assert_close(
        model.probs, torch.tensor([0.0, 0.75, 0.25, 0.0], dtype=torch.float64), rtol=0, atol=5e-3
    )
    weights = masked_sum(batch.extras["ptx"][:, None].expand(batch.shape), batch.mask)
    assert weights.item() == pytest.approx(0.3 * SAMPLES), "all documents weigh ptx_coef of all answers"
    assert told[-1]["ptx_loss"] == pytest.approx(0.5623, abs=5e-3)  # the entropy of (3/4, 1/4) in nats


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_the_logged_clip_fraction_counts_the_tokens_that_learn_nothing(stage: str) -> None:
    """A ratio beyond the range is clipped only where the advantage pushes it further; elsewhere it learns."""
    batch = lay_out_tree(FOREST)
    shape = batch.shape
    logprobs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    pushed = torch.randn(shape[0], dtype=torch.float64)
    zeros = torch.zeros(shape, dtype=torch.float64)
    extras = {"old_logprobs": zeros, "ref_logprobs": zeros, "scores": pushed, "shaped": pushed, "kl": zeros}
    if stage == "grpo":
        objective: Any = grpo.GroupObjective(grpo.GRPOOptions(clip_low=0.1, clip_high=0.3), 8, terms(0.0))
        batch = replace(batch, extras={**extras, "advantages": pushed})
    else:
        objective = ppo.ClippedObjective(ppo.Weights(clip=0.2, value=0.0), terms(0.0))
        own = {
            "advantages": pushed[:, None].expand(shape),
            "old_values": zeros,
            "returns": zeros,
            "ptx": 0 * pushed,
        }
        batch = replace(batch, extras={**extras, **own})
    loss, numbers = objective.loss(Outputs(logprobs=logprobs, values=zeros), batch)
    loss.backward()
    assert logprobs.grad is not None
    stopped = int(((logprobs.grad == 0) & batch.mask).sum())
    total, tokens = numbers["clip_fraction"]
    assert (int(total), int(tokens)) == (stopped, batch.n_trained)
    beyond = ((logprobs.exp() < 0.8) | (logprobs.exp() > 1.3)).sum()
    assert 0 < stopped < beyond
