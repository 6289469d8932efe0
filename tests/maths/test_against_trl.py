"""The same tensors through TRL's own trainers give the same numbers.

TRL's losses are methods of its trainers. They are called here unbound, on a stand-in that carries only the settings
which the method reads and on a "model" that returns the log-probabilities that we chose.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from espalier.maths import advantages as adv
from espalier.maths import losses, preferences
from espalier.maths.preferences import PREFERENCES
from espalier.maths.reduce import masked_mean, masked_sum
from espalier.models.forward import Outputs
from espalier.stages.objectives.grpo import GroupObjective, GRPOOptions
from espalier.stages.policy import PolicyOptions, PolicyTerms
from espalier.trees import Tree
from espalier.trees.batch import lay_out_tree

pytest.importorskip("trl", reason="TRL is not installed; the test extra brings it")

P, T = 5, 7


def stand_in(**settings: Any) -> MagicMock:
    """Enough of a trainer: one process, metrics thrown away, and the settings given."""
    trainer = MagicMock()
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    trainer.aux_loss_enabled = False
    trainer.model.training = True
    trainer.accelerator.device = torch.device("cpu")
    trainer.accelerator.num_processes, trainer.accelerator.process_index = 1, 0
    for name in ("gather", "gather_for_metrics"):
        setattr(trainer.accelerator, name, lambda x: x)
    trainer.accelerator.reduce = lambda x, reduction: x
    for name, value in settings.items():
        setattr(trainer, name, value)
    return trainer


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(token log-probabilities of policy and reference (2P, T), mask (2P, T), its float); P chosen, then P rejected."""
    mask = torch.arange(T) < torch.randint(1, T + 1, (2 * P, 1))
    policy, reference = (-torch.rand(2 * P, T) * 3 for _ in range(2))
    return policy * mask, reference * mask, mask, mask.long()


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("kind", [kind for kind in PREFERENCES if kind not in ("orpo", "simpo", "cpo")])
def test_preferences_against_a_reference(
    pairs: tuple[Tensor, Tensor, Tensor, Tensor], kind: str, beta: float
) -> None:
    from trl.trainer.dpo_trainer import DPOTrainer

    policy, reference, mask, as_numbers = pairs
    row = PREFERENCES[kind]
    smoothing = 0.2 if kind in ("robust", "exo_pair") else 0.0  # TRL smooths in those only
    trainer = stand_in(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=0.3),
    )
    blank = torch.zeros_like(policy)
    outputs = SimpleNamespace(log_probs=policy, entropy=blank, mean_logits=blank, is_top1=blank.bool())
    # One prompt token before the completion: TRL shifts the mask by one.
    completion_mask = torch.cat([torch.zeros(len(mask), 1, dtype=torch.long), as_numbers], 1)
    ref_chosen, ref_rejected = reference.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    theirs = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)

    reduce = masked_mean if row.reduction == "mean" else masked_sum
    four = [*reduce(policy, mask, 1).chunk(2), *reduce(reference, mask, 1).chunk(2)]
    further = {"label_smoothing": smoothing, "tau": 0.3}
    ours = row.function(*four, beta=beta, **{name: further[name] for name in row.takes})
    torch.testing.assert_close(ours.mean(), theirs)
    assert not torch.allclose(
        ours.mean(), PREFERENCES["hinge" if kind == "sigmoid" else "sigmoid"].function(*four, beta)
    )


def test_label_smoothing_is_that_of_cpo(pairs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """The conservative DPO is TRL's smoothed CPO where the reference says 0."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    chosen, rejected = pairs[0].sum(1).chunk(2)
    zero = torch.zeros_like(chosen)
    trainer = stand_in(alpha=0.0, beta=0.3, loss_type="sigmoid", label_smoothing=0.2)
    theirs, *_ = CPOTrainer.cpo_loss(trainer, chosen, rejected)
    ours = preferences.dpo(chosen, rejected, zero, zero, beta=0.3, label_smoothing=0.2)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["orpo", "simpo", "cpo"])
def test_preferences_without_a_reference(kind: str, pairs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    policy, _, mask, _ = pairs
    row = PREFERENCES[kind]
    reduce = masked_mean if row.reduction == "mean" else masked_sum
    chosen, rejected = reduce(policy, mask, 1).chunk(2)
    nll = -masked_mean(policy, mask, 1).chunk(2)[0].mean()
    trainer = stand_in(
        beta=0.3,
        alpha=0.0,
        label_smoothing=0.0,
        simpo_gamma=0.7,
        loss_type="simpo" if kind == "simpo" else "sigmoid",
    )
    trainer.cpo_alpha = row.nll
    for name in ("cpo_loss", "odds_ratio_loss"):
        method = getattr(CPOTrainer if name == "cpo_loss" else ORPOTrainer, name)
        setattr(trainer, name, partial(method, trainer))
    blank = torch.zeros(1)
    trainer.concatenated_forward.return_value = (chosen, rejected, blank, blank, nll)
    theirs, _ = (ORPOTrainer if kind == "orpo" else CPOTrainer).get_batch_loss_metrics(trainer, None, {})
    zero = torch.zeros_like(chosen)
    further = {"label_smoothing": 0.0, "gamma": 0.7}
    ours = row.function(chosen, rejected, zero, zero, beta=0.3, **{name: further[name] for name in row.takes})
    torch.testing.assert_close(ours.mean() + row.nll * nll, theirs)


def test_kto() -> None:
    from trl.trainer.kto_trainer import KTOTrainer

    T = 6
    mask = torch.arange(T) < torch.randint(1, T + 1, (2 * P, 1))
    policy, reference, strange, strange_ref = (-torch.rand(2 * P, T) * mask for _ in range(4))
    good = torch.arange(2 * P) % 3 > 0
    ids = torch.zeros(2 * P, T + 1, dtype=torch.long)
    inputs = {
        "input_ids": ids,
        "attention_mask": ids + 1,
        "completion_mask": torch.cat([ids[:, :1], mask.long()], 1),
        "label": good,
        "ref_logps": reference.sum(1),
        "ref_KL_logps": strange_ref.sum(1) - 0.7,  # so that the estimate is above 0
    }
    trainer = stand_in(
        beta=0.3,
        loss_type="kto",
        desirable_weight=1.3,
        undesirable_weight=0.8,
        precompute_ref_logps=True,
        calculate_KL=True,
    )
    trainer._compute_kl_logps.return_value = strange.sum(1)
    blank = torch.zeros(2 * P, T)
    outputs = SimpleNamespace(log_probs=policy, entropy=blank, mean_logits=blank, is_top1=blank.bool())
    theirs = KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)

    kl = (strange.sum(1) - inputs["ref_KL_logps"]).mean().clamp(min=0)
    assert kl > 0
    ours = preferences.kto(policy.sum(1), reference.sum(1), good.float(), kl, 0.3, (1.3, 0.8))
    torch.testing.assert_close(ours.mean(), theirs)
    at_zero = preferences.kto(policy.sum(1), reference.sum(1), good.float(), kl * 0, 0.3, (1.3, 0.8))
    assert not torch.allclose(at_zero.mean(), theirs)


def test_reward_model_loss() -> None:
    from trl.trainer.reward_trainer import RewardTrainer

    scores = torch.randn(2 * P, 1) * 3
    trainer = stand_in(args=SimpleNamespace(center_rewards_coefficient=None))
    inputs = {"attention_mask": torch.ones(2 * P, T)}
    theirs = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores), inputs)
    chosen, rejected = scores.squeeze(1).chunk(2)
    torch.testing.assert_close(losses.pairwise_log_sig(chosen, rejected).mean(), theirs)
    torch.testing.assert_close(losses.pairwise_log_exp(chosen, rejected).mean(), theirs)
    assert trainer._metrics["train"]["accuracy"] == [pytest.approx((chosen > rejected).float().mean().item())]


def grpo_stand_in(**settings: Any) -> MagicMock:
    defaults = {
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "use_vllm": False,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": T,
        "_entropy_bonus_enabled": False,
    }
    trainer = stand_in(**{**defaults, **settings})
    trainer.args.delta = None
    trainer.args.use_bias_correction_kl = False
    trainer.args.steps_per_generation = 1
    return trainer


GRPO_KINDS = {
    # TRL's loss_type -> the stage's policy_loss, loss_average
    "grpo": ("clip", "answer"),
    "dapo": ("clip", "token"),
    "dr_grpo": ("clip", "constant"),
    "cispo": ("cispo", "token"),
}


@pytest.mark.parametrize("level", losses.RATIOS)
@pytest.mark.parametrize("kind", GRPO_KINDS)
def test_grpo_loss_with_its_kl(kind: str, level: str) -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer

    mask = torch.arange(T) < torch.randint(1, T + 1, (P, 1))
    logprobs, old, reference = (-torch.rand(P, T) for _ in range(3))
    advantages = torch.randn(P)
    high = 1.28 if kind == "cispo" else 0.28  # TRL's is the bound itself, in CISPO
    trainer = grpo_stand_in(
        loss_type=kind, beta=0.04, epsilon_low=0.2, epsilon_high=high, importance_sampling_level=level
    )
    trainer._get_per_token_logps_and_entropies.return_value = (logprobs, torch.zeros(P, T), None)
    ids = torch.zeros(P, T, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    theirs = GRPOTrainer._compute_loss(trainer, MagicMock(), inputs)

    policy_loss, average = GRPO_KINDS[kind]
    options = GRPOOptions(
        policy_loss=policy_loss, importance_sampling_level=level, loss_average=average, clip_high=0.28
    )
    terms = PolicyTerms(PolicyOptions(kl_in="loss", kl_estimator="k3"), lambda: 0.04)
    objective = GroupObjective(options, T, terms)
    trees = [Tree.from_path(range(n + 1), [False] + [True] * n) for n in mask.sum(1).tolist()]
    width = int(mask.sum(1).max())
    batch = lay_out_tree(trees).with_extras(
        old_logprobs=old[:, :width],
        ref_logprobs=reference[:, :width],
        advantages=advantages,
        scores=advantages,
    )
    total, numbers = objective.loss(Outputs(logprobs[:, :width]), batch)
    torch.testing.assert_close(total / objective.count(batch), theirs)
    plain = GroupObjective(GRPOOptions(loss_average=average, clip_high=0.28), T, terms)
    if (policy_loss, level) != ("clip", "token"):
        assert not torch.allclose(plain.loss(Outputs(logprobs[:, :width]), batch)[0], total)

    logged = trainer._metrics["train"]
    if kind != "cispo":
        clipped, tokens = numbers["clip_fraction"]
        # TRL's mean of ratios of answers is over answers, ours over their tokens.
        if level == "token":
            assert logged["clip_ratio/region_mean"] == [pytest.approx(float(clipped) / float(tokens))]
    assert logged["kl"] == [pytest.approx(masked_mean(adv.kl_k3(logprobs, reference), mask).item())]


def trl_group_advantages(
    trainer_class: Any, scores: Tensor, group: int, generated: tuple[Any, ...], **settings: Any
) -> Tensor:
    """Runs TRL's whole scoring of a rollout with generation and rewards replaced by what we chose."""
    n = len(scores)
    trainer = stand_in(
        environment_factories=None,
        environments=None,
        tools=None,
        num_generations=group,
        num_generations_eval=group,
        reward_funcs=[None],
        reward_func_names=["r"],
        reward_weights=torch.ones(1),
        multi_objective_aggregation="sum_then_normalize",
        mask_truncated_completions=False,
        pad_to_multiple_of=None,
        use_vllm=False,
        beta=0.0,
        reward_clip_range=None,
        _is_vlm=False,
        _pending_extra_logs={},
        _pending_metrics={},
        _logs=defaultdict(list, {"rewards": defaultdict(list), "extra": defaultdict(list)}),
        **settings,
    )
    trainer._tokenizer.pad_token_id = 0
    trainer.args.per_device_train_batch_size = n
    trainer.args.gradient_accumulation_steps = 1
    trainer.args.generate_every = trainer.args.steps_per_generation = 1
    trainer._get_per_token_logps_and_entropies.return_value = (torch.zeros(n, 1), None, None)
    trainer._generate.return_value = generated
    trainer._calculate_rewards.return_value = scores[:, None]
    inputs = [{"prompt": "p"} for _ in range(n)]
    return trainer_class._generate_and_score_completions(trainer, inputs)["advantages"]


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "batch", "rloo"])
def test_group_advantages(kind: str) -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

    scores, tree_id = torch.randn(12), torch.arange(3).repeat_interleave(4)
    scores[4:8] = 1.0  # a group in which all answers are worth the same
    prompts, completions, texts = [[1]] * 12, [[2]] * 12, ["x"] * 12
    if kind == "rloo":
        generated = (prompts, completions, texts)
        theirs = trl_group_advantages(RLOOTrainer, scores, 4, generated, normalize_advantages=False)
    else:
        long = (prompts, completions, None, texts, None, {}, None, None)
        scale = {"grpo": "group", "dr_grpo": "none", "batch": "batch"}[kind]
        theirs = trl_group_advantages(GRPOTrainer, scores, 4, long, scale_rewards=scale)
    torch.testing.assert_close(adv.ADVANTAGES[kind](scores, tree_id), theirs)


def test_overlong_penalty() -> None:
    from trl.rewards import get_soft_overlong_punishment

    theirs = get_soft_overlong_punishment(20, 6)([[1] * length for length in range(1, 21)])
    lengths = torch.arange(1.0, 21.0)
    assert (-adv.overlong_penalty(lengths, 20, 6)).tolist() == pytest.approx(theirs)
    assert 0 in theirs and -1 in theirs
