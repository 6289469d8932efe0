"""Kahneman-Tversky optimisation: a policy from single answers that somebody called good or bad (Ethayarajh et al. 2024).

A tree holds an answer and, behind the same prompt, the answer to another prompt. The second is never learned: the mean
of its log-ratios over a step, at least 0, is the KL from the reference with which the first one's log-ratio is
compared. It is that of the whole step over all ranks, so the feed asks the policy for it before the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from espalier.config.options import Options, RunOptions, option
from espalier.data.preflight.findings import HELD_OUT
from espalier.data.store.stack import Forest, Sizes
from espalier.engine.group import over_ranks
from espalier.engine.track import Numbers
from espalier.errors import UserError
from espalier.maths.preferences import kto
from espalier.maths.reduce import masked_sum
from espalier.models.forward import Outputs, Want
from espalier.stages.parts import HeldOut, Live, Parts, Units, validator
from espalier.stages.references import ReferenceOptions, asks_policy, precomputed, reference_of
from espalier.stages.setup import Setup
from espalier.stages.stage import Stage
from espalier.trees import Batch, Tree


@dataclass(frozen=True, kw_only=True)
class KTOOptions(Options):
    """The KTO stage."""

    desirable_weight: float = option(
        1.0, "Weight of good answers; weight x number of the two kinds should be alike.", min=0
    )
    undesirable_weight: float = option(1.0, "Weight of bad answers.", min=0)


class Unpaired:
    """Good answers gain more than the KL from the reference, bad ones less.

    Extras, of two branches a tree: ref_logprobs (B, A); desirable (B,), 1 or 0; kl (B,), the same on all.

    Args:
        beta: > 0.
        weights: of good and of bad answers.
        fresh: whether the policy starts as the reference, so that nothing has been gained at the first step.
    """

    want = Want()

    def __init__(self, beta: float, weights: tuple[float, float], *, fresh: bool) -> None:
        self._beta, self._weights, self._fresh = beta, weights, fresh

    def count(self, batch: Batch) -> float:
        return float(batch.n_trees)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]:
        gained, good, kl = self._answers(outputs, batch)
        total = kto(gained, torch.zeros_like(gained), good, kl, self._beta, self._weights).sum()
        answers, rewards, right = len(good), self._beta * gained.detach(), self._right(gained, good, kl)
        return total, {
            "loss": (total.detach(), answers),
            "accuracy": (right.sum(), answers),
            "kl": (kl.sum(), answers),
            "desirable_reward": ((rewards * good).sum(), good.sum()),
            "undesirable_reward": ((rewards * (1 - good)).sum(), (1 - good).sum()),
        }

    def judge(self, outputs: Outputs, batch: Batch) -> Units:
        right = self._right(*self._answers(outputs, batch))
        return right, torch.ones_like(right)

    def check(self, first: dict[str, float]) -> None:
        names = ("desirable_reward", "undesirable_reward")
        far = max(abs(first.get(name, 0.0)) for name in names)
        if self._fresh and max(far, self._beta * first["kl"]) > 0.04:
            raise ValueError(
                f"the first step's rewards are up to {far:.4f} with a KL of {first['kl']:.4f}, and must be 0: policy and "
                "reference are not the same model at the start. Check dropout, adapters and precision."
            )

    @staticmethod
    def _answers(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) log-ratios of the answers that are learned, whether they are good, and the KL."""
        x = batch.extras
        return log_ratios(outputs, batch)[:, 0], x["desirable"][::2], x["kl"][::2]

    @staticmethod
    def _right(gained: Tensor, good: Tensor, kl: Tensor) -> Tensor:
        """1 where an answer lies on its side of the KL, 0 where not, a half where nothing has changed yet."""
        ahead = (gained.detach() - kl) * (2 * good - 1)
        return (ahead > 0).float() + 0.5 * (ahead == 0)


def log_ratios(outputs: Outputs, batch: Batch) -> Tensor:
    """(N, 2) policy to reference, summed over the tokens: of the answer, and of the answer to another prompt."""
    assert outputs.logprobs is not None
    return masked_sum(outputs.logprobs - batch.extras["ref_logprobs"], batch.mask, 1).view(-1, 2)


def with_kl(live: Live, batches: Sequence[Batch]) -> list[Batch]:
    """The micro-batches of a step with ``extras["kl"]`` (B,), max(0, mean log-ratio of answers to other prompts)."""
    total = answers = 0.0
    for batch in batches:
        strange = log_ratios(live.run(batch, Want()), batch)[:, 1]
        if batch.weight:
            total, answers = total + float(strange.sum()), answers + len(strange)
    total, answers = over_ranks(live.accelerator, [total, answers])
    kl = max(total / max(answers, 1), 0.0)
    return [batch.with_extras(kl=torch.full_like(batch.extras["desirable"], kl)) for batch in batches]


def with_strangers(forest: Forest, cutoff_len: int, seed: int) -> Forest:
    """Each tree of one answer with a second branch, the answer to another prompt, cut where a row ends.

    Raises:
        UserError: when a tree is asked for and all others have its prompt.
    """
    order = np.random.default_rng([seed, 9]).permutation(len(forest))
    place = np.argsort(order)

    def make(at: int) -> Tree:
        tree = forest[at]
        ((tokens, trained),) = tree.paths()
        start = int(trained.argmax())
        prompt = tokens[:start]
        for step in range(1, len(order)):
            other, flags = forest[int(order[(place[at] + step) % len(order)])].paths()[0]
            begin = int(flags.argmax())
            if np.array_equal(other[:begin], prompt):
                continue
            strange = np.concatenate([prompt, other[begin:]])[:cutoff_len]
            learned = np.concatenate([trained[:start], flags[begin:]])[:cutoff_len]
            branches = [
                (ids.tolist(), marks.tolist()) for ids, marks in ((tokens, trained), (strange, learned))
            ]
            good = tree.extras["desirable"].expand(2)
            return Tree.join(branches, source=tree.source, extras={"desirable": good})
        raise UserError(
            f"{tree.source}: no other record has another prompt. KTO compares an answer with answers to other "
            "prompts; give records of two prompts or more."
        )

    def sizes(paths: bool) -> Sizes:
        """At most so many: the other's prompt is not laid out."""
        own = forest.sizes(paths=paths)
        both: Sizes = own + own[order[(place + 1) % len(order)]]
        return both

    return Forest(make, sizes, len(forest))


def build(setup: Setup) -> Parts:
    options, compared = setup.option(KTOOptions), setup.option(ReferenceOptions)
    seed = setup.option(RunOptions).seed
    records, held_out = setup.records("unpaired")
    train, judged = (
        with_strangers(setup.trees(*part), setup.cutoff_len, seed)
        for part in ((records,), (held_out, HELD_OUT))
    )
    policy = setup.load_policy()
    add = reference_of(setup, policy, compared.ref_model)
    if compared.precompute_ref_logprobs:
        train, judged = (precomputed(trees, add, setup.rows(policy)) for trees in (train, judged))
        add.frozen = None
    weights = (options.desirable_weight, options.undesirable_weight)
    objective = Unpaired(compared.pref_beta, weights, fresh=compared.ref_model is None)
    batches = add.step(setup.rows(policy).micro_batches(judged)) if judged else []

    def annotate(live: Live) -> Callable[[list[Batch]], list[Batch]]:
        return lambda step: with_kl(live, add.step(step))

    return Parts(
        trained=policy,
        main=policy,
        objective=objective,
        feed=lambda live: setup.dataset_feed(policy, train, annotate=annotate(live)),
        validate=lambda live: validator(objective, with_kl(live, batches))(live),
        held_out=HeldOut("accuracy", "higher"),
        sample_prompts=setup.sample_prompts(held_out or records),
    )


STAGE = Stage(
    "unpaired",
    build,
    (ReferenceOptions, KTOOptions),
    reference=lambda options: asks_policy(options[ReferenceOptions]),
)
