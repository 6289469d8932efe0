"""PPO beyond its core: scores that are normalised, policy and critic at paces of their own, passes that end early."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espalier import config
from espalier.engine.optim import OptimizerSettings, learning_rates, optimizer_of
from espalier.engine.step import Schedule
from espalier.errors import UserError
from espalier.maths.losses import clipped_policy
from espalier.runs.catalogue import CLASSES
from espalier.stages.policy import PassGuard, PolicyOptions, PolicyTerms, dual_clipped
from espalier.stages.shaping import ScoreNormalizer, ShapingOptions, experience, with_shaped
from espalier.trees import Tree
from tests.stages.conftest import far, rows, run, weights

Make = Callable[..., dict[str, Any]]


def test_scores_are_normalised_by_all_that_came_so_far() -> None:
    generator = torch.Generator().manual_seed(0)
    rollouts = [torch.randn(n, generator=generator) * 3 + 5 for n in (4, 9, 1)]
    normalizers = {kind: ScoreNormalizer(kind) for kind in ("none", "scale", "standardise")}
    for at, scores in enumerate(rollouts):
        if at == 1:  # a checkpoint between two rollouts
            for kind, normalizer in normalizers.items():
                normalizers[kind] = ScoreNormalizer(kind)
                normalizers[kind].restore(normalizer.state())
        so_far = torch.cat(rollouts[: at + 1]).double()
        made = {kind: normalizer(scores) for kind, normalizer in normalizers.items()}
        assert made["none"] is scores
        torch.testing.assert_close(made["scale"], (scores / so_far.std()).float())
        torch.testing.assert_close(made["standardise"], ((scores - so_far.mean()) / so_far.std()).float())


def test_equal_scores_are_not_divided_by_nothing() -> None:
    assert ScoreNormalizer("scale")(torch.full((3,), 2.0)).tolist() == [2.0] * 3
    assert ScoreNormalizer("standardise")(torch.full((3,), 2.0)).tolist() == [0.0] * 3


def measured(scores: list[float]) -> list[Tree]:
    generator = torch.Generator().manual_seed(1)
    trees = []
    for length, score in enumerate(scores, start=2):
        tree = Tree.from_path(range(length + 1), [False] + [True] * length)
        grids = {
            name: torch.randn(1, length, generator=generator)
            for name in ("old_logprobs", "ref_logprobs", "old_values")
        }
        trees.append(tree.with_extras(scores=torch.tensor([score]), **grids))
    return with_shaped(trees, ScoreNormalizer("none"))


def cells(trees: list[Tree], name: str) -> Tensor:
    return torch.cat([tree.extras[name].flatten() for tree in trees])


@pytest.mark.parametrize(
    ("kind", "mean", "spread"), [("full", True, True), ("scale", False, True), ("none", False, False)]
)
def test_advantages_are_whitened_as_asked(kind: Any, mean: bool, spread: bool) -> None:
    terms = PolicyTerms(PolicyOptions(), lambda: 0.1)
    made = experience(measured([1.0, -2.0, 4.0]), ShapingOptions(whiten_advantages=kind), terms)
    plain = cells(
        experience(measured([1.0, -2.0, 4.0]), ShapingOptions(whiten_advantages="none"), terms), "advantages"
    )
    found = cells(made, "advantages")
    assert abs(float(plain.mean())) > 0.1 and abs(float(plain.std()) - 1) > 0.1
    assert (abs(float(found.mean())) < 1e-6) is mean
    assert (abs(float(found.std()) - 1) < 1e-4) is spread


def test_whitened_rewards_keep_their_mean() -> None:
    terms = PolicyTerms(PolicyOptions(), lambda: 0.1)
    plain = cells(experience(measured([1.0, -2.0, 4.0]), ShapingOptions(), terms), "rewards")
    white = cells(
        experience(measured([1.0, -2.0, 4.0]), ShapingOptions(whiten_rewards=True), terms), "rewards"
    )
    assert float(white.std()) == pytest.approx(1, abs=1e-4) and abs(float(plain.std()) - 1) > 0.1
    assert float(white.mean()) == pytest.approx(float(plain.mean()), abs=1e-6)


def test_a_bad_token_that_has_become_likely_weighs_at_most_so_much() -> None:
    log_ratio = torch.tensor([[3.0, 0.5, 3.0]], requires_grad=True)
    advantages = torch.tensor([[-1.0, -1.0, 1.0]])
    loss = dual_clipped(clipped_policy(log_ratio, torch.zeros(1, 3), advantages, 0.2, 0.2), advantages, 3.0)
    loss.sum().backward()
    assert log_ratio.grad is not None
    assert loss[0].tolist() == pytest.approx([3.0, math.exp(0.5), -1.2])
    assert log_ratio.grad[0].tolist() == pytest.approx([0.0, math.exp(0.5), 0.0])


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.policy, self.critic = nn.Linear(3, 2), nn.Linear(3, 1)


def test_a_part_learns_as_if_it_had_an_optimiser_of_its_own() -> None:
    torch.manual_seed(0)
    both, x = Two(), torch.randn(5, 3)
    start = both.policy.weight.detach().clone()
    apart = Two()
    apart.load_state_dict(both.state_dict())
    settings = OptimizerSettings("adamw", 1.0, weight_decay=0.1)
    one = optimizer_of(both, settings, ["policy", "critic"])
    assert {group["part"] for group in one.param_groups} == {"policy", "critic"}
    rates = {
        "policy": learning_rates("linear", 0.1, 2, 10, {}, 3),
        "critic": learning_rates("linear", 0.3, 0, 10, {}),
    }
    others = {name: optimizer_of(getattr(apart, name), settings) for name in rates}
    for step in range(10):
        for module in (both, apart):
            module.zero_grad()
            (module.policy(x) ** 2).sum().backward()
            (module.critic(x) - 1).pow(2).sum().backward()
        for group in one.param_groups:
            group["lr"] = rates[group["part"]](step)
        one.step()
        for name, optimizer in others.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name](step)
            optimizer.step()
        assert torch.equal(both.policy.weight, start) is (step < 3), "the policy waits three steps"
    for mine, theirs in zip(both.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_part_that_waits_has_the_whole_schedule_afterwards() -> None:
    late, own = learning_rates("cosine", 1.0, 2, 10, {}, 4), learning_rates("cosine", 1.0, 2, 6, {})
    assert [late(step) for step in range(10)] == [0.0] * 4 + [own(step) for step in range(6)]
    assert Schedule(own).parts == {}


@pytest.mark.slow
def test_the_critic_learns_first_and_alone_and_at_its_own_rate(options: Make, world: Path) -> None:
    from safetensors.torch import load_file

    chosen = options("ppo", critic_first_steps=4, critic_learning_rate=2e-3, critic_max_grad_norm=0.5)
    run(chosen)
    base = load_file(world / "base" / "model.safetensors")
    judge = load_file(world / "judge" / "model.safetensors")
    policy, critic = weights(chosen), weights(chosen, "critic")
    assert (
        far({k: v for k, v in policy.items() if k in base}, {k: v for k, v in base.items() if k in policy})
        == 0
    )
    shared = critic.keys() & judge.keys()
    assert far({k: critic[k] for k in shared}, {k: judge[k] for k in shared}) > 1e-4
    steps = [row for row in rows(chosen) if "loss" in row]
    assert [row["policy_learning_rate"] for row in steps] == [0.0] * 4
    assert steps[0]["critic_learning_rate"] == 2e-3 and steps[0]["learning_rate"] == 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_passes_end_where_the_policy_has_gone_too_far(stage: str, options: Make) -> None:
    passes = {"ppo": "ppo_epochs", "grpo": "grpo_epochs"}[stage]
    chosen = options(stage, learning_rate=0.05, stop_kl=1e-6, max_steps=8, **{passes: 4})
    run(chosen)
    steps = [row for row in rows(chosen) if "loss" in row]
    assert steps[-1]["idle_steps"] >= 4, "of four passes the first may be taken, and the second"
    free = options(stage, learning_rate=0.05, max_steps=8, resume=False, **{passes: 4})
    run(free)
    assert "idle_steps" not in [row for row in rows(free) if "loss" in row][-1]


def test_the_guard_looks_at_the_whole_step_and_opens_again() -> None:
    guard, mask = PassGuard(0.01), torch.ones(1, 2, dtype=torch.bool)
    old = torch.tensor([[-1.0, -1.0]])

    guard.look(old, old, mask)
    guard.look(old + 0.2, old, mask)  # k3 = e^0.2 - 1 - 0.2 = 0.0214, half of it over both micro-batches
    assert guard._sums == pytest.approx([2 * (math.exp(0.2) - 1.2), 4.0])
    guard.shut = True
    guard.begin()
    assert not guard.shut and guard._sums == [0.0, 0.0]


@pytest.mark.slow
def test_everything_at_once_stops_and_goes_on_to_the_same_weights(
    options: Make, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {
        "score_normalization": "standardise", "whiten_rewards": True, "whiten_advantages": "scale", "kl_in": "loss",
        "kl_estimator": "k3", "entropy_coef": 0.01, "dual_clip": 3.0, "ptx_dataset": [str(world / "sft_train.jsonl")],
        "ptx_coef": 0.2, "ptx_mix": "convex", "ptx_batch_size": 3, "critic_warmup_steps": 2, "ema_decay": 0.9,
        "experience_batch_size": 1, "temperature": 0.8, "save_steps": 2, "rollout_prompts": 8,
    }  # fmt: skip
    whole = options("ppo", **extra)
    run(whole)
    expected = weights(whole)
    logged = [row for row in rows(whole) if "loss" in row]
    assert all(row["entropy"] > 0 and row["ptx_loss"] > 0 for row in logged)
    folder = Path(whole["output_dir"]).parent / "again"
    first = whole | {"output_dir": str(folder), "experience_batch_size": None}
    from espalier.runs import train

    save = train.save

    def stopping(running: Any, step: int) -> None:
        save(running, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(first)
    monkeypatch.undo()
    run(first)
    assert far(weights(first), expected) < 1e-6
    assert [row["loss"] for row in rows(first) if "loss" in row][-1] == pytest.approx(
        logged[-1]["loss"], abs=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kl_in": "loss"}, "`kl_estimator: k1` with `kl_in: loss` has no effect"),
        ({"ptx_mix": "convex"}, "`ptx_mix: convex` needs `ptx_coef` between 0 and 1"),
        ({"ptx_batch_size": 2}, "`ptx_batch_size` is about `ptx_dataset`"),
        ({"critic_first_steps": 1.5}, "`critic_first_steps` is 1.5; wanted a whole number"),
        ({"dual_clip": 1.0}, "`dual_clip` is 1.0; wanted a number of more than 1"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], words: str, options: Make) -> None:
    with pytest.raises(UserError, match=words):
        config.build(options("ppo", **changes), CLASSES["ppo"], all_classes=CLASSES)


def test_other_projects_names_for_these() -> None:
    values = {"stage": "ppo", "model_name_or_path": "m", "dataset": ["d"], "reward_function": "brevity",
              "ppo_score_norm": True, "ppo_whiten_rewards": True, "freezing_actor_steps": 3}  # fmt: skip
    built = config.build(values, CLASSES["ppo"], all_classes=CLASSES)
    shaping = built[ShapingOptions]
    assert shaping == replace(ShapingOptions(), score_normalization="standardise", whiten_rewards=True)
