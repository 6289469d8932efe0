"""The reward model: a number for an answer, from which of two (or K) answers people preferred.

All answers to a prompt stand in one tree and share all that agrees; the reward of each is read at the token that
ends it (`data.encode.scored`), where rollouts and the exam read it too. All ordered pairs of a tree are learned at once, and a tree counts once however
many they are (Ouyang et al. 2022, eq. 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from espalier.config.options import Options, option
from espalier.data.encode.scored import ScoreAt
from espalier.data.preflight.findings import HELD_OUT
from espalier.engine.group import over_ranks
from espalier.engine.track import Numbers
from espalier.maths.losses import pairwise_log_exp, pairwise_log_sig, ranking_pairs
from espalier.maths.rankings import held_values, parted, plackett_luce, squared_error
from espalier.maths.reduce import masked_mean, segment_mean
from espalier.models.forward import Outputs, Want
from espalier.stages.parts import HeldOut, Live, Parts, Units, validator
from espalier.stages.setup import Setup
from espalier.stages.stage import Stage
from espalier.trees import Batch, Tree


@dataclass(frozen=True)
class RewardLoss:
    """A loss of a reward model.

    Attributes:
        pair: of elementwise better and worse numbers; None: the loss is `ranking`'s.
        ranking: (B,) scores, what people said, tree_id, and the number of trees T -> (T,).
        tokens: whether pairs are compared behind each token from the first that differs, and not at their ends.
        source: where the formula stands.
    """

    source: str
    pair: Callable[[Tensor, Tensor], Tensor] | None = None
    ranking: Callable[[Tensor, Tensor, Tensor, int], Tensor] | None = None
    tokens: bool = False


LOSSES: dict[str, RewardLoss] = {
    "log_sig": RewardLoss("Ouyang et al. 2022, eq. 1", pairwise_log_sig),
    "log_exp": RewardLoss("the same, spelled otherwise", pairwise_log_exp),
    "tokens": RewardLoss("Yao et al. 2023 (DeepSpeed-Chat)", pairwise_log_sig, tokens=True),
    "plackett_luce": RewardLoss("Plackett 1975; Rafailov et al. 2023, eq. 18", ranking=plackett_luce),
    "mse": RewardLoss("Wang et al. 2024 (HelpSteer 2)", ranking=squared_error),
}
"""The values of ``reward_loss``: a further one is a function and a row."""

if TYPE_CHECKING:
    LossName = str
else:  # what help, documents and the check of a file show are the rows of the table
    LossName = Literal[tuple(LOSSES)]


@dataclass(frozen=True, kw_only=True)
class RewardOptions(Options):
    """The reward stage."""

    reward_loss: LossName = option(
        "log_sig",
        "Of pairs: -log sigmoid(margin), log(1 + exp(-margin)), which is the same number, or behind each token that "
        "differs; of rankings: plackett_luce; of scores: mse.",
    )
    reward_margin: float = option(
        0.0,
        "So many times the difference of what people scored two answers (or a pair's `margin`) is wanted between their "
        "rewards.",
        min=0,
    )
    center_rewards_coefficient: float = option(
        0.0,
        "Weight of the square of a pair's summed rewards, which keeps rewards near 0 (0.01 is usual).",
        min=0,
    )
    score_at: ScoreAt = option(
        "answer",
        "Read an answer's reward at its end token, where sampling stops, or behind all that the template writes (turn).",
    )

    def problems(self) -> list[str]:
        if LOSSES[self.reward_loss].pair is not None:
            return []
        asked = [key for key in ("reward_margin", "center_rewards_coefficient") if getattr(self, key)]
        return [
            f"`{key}` belongs to losses of pairs, not to reward_loss: {self.reward_loss}." for key in asked
        ]


class PairwiseReward:
    """Every better answer of a tree scores above every worse one; each tree counts once, however many its pairs.

    Extras: preference (B,), what people said; where they have them, margins (B,), of which the difference is wanted
    between two rewards.

    Args:
        loss: one of `LOSSES`.
        fresh: whether the head is new, so that the first margin must be near 0.
        center: weight of (better + worse)^2 (Eisenstein et al. 2023).
    """

    def __init__(self, loss: str, *, fresh: bool, center: float = 0.0) -> None:
        self._loss, self._fresh, self._center = LOSSES[loss], fresh, center
        self.want = Want(logprobs=False, scores=True, values=self._loss.tokens)

    def count(self, batch: Batch) -> float:
        """Trees with a pair."""
        return float(len(batch.tree_id[_pairs(batch)[0]].unique()))  # type: ignore[no-untyped-call]

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]:
        assert outputs.scores is not None
        better, worse = _pairs(batch)
        chosen, rejected = outputs.scores[better], outputs.scores[worse]
        total = self._by_tree(outputs, batch, better, worse).sum()
        pairs, margin = len(better), (chosen - rejected).detach()
        return total, {
            "loss": (total.detach(), self.count(batch)),
            "accuracy": ((margin > 0).sum(), pairs),
            "confidence": (margin.abs().sigmoid().sum(), pairs),
            "margin": (margin.sum(), pairs),
            "chosen_score": (chosen.detach().sum(), pairs),
            "rejected_score": (rejected.detach().sum(), pairs),
        }

    def _by_tree(self, outputs: Outputs, batch: Batch, better: Tensor, worse: Tensor) -> Tensor:
        """(T,) the loss of each tree; 0 of one whose answers are all equally good."""
        scores, trees = outputs.scores, batch.n_trees
        assert scores is not None
        if self._loss.ranking is not None:
            return self._loss.ranking(scores, batch.extras["preference"], batch.tree_id, trees)
        assert self._loss.pair is not None
        margins = batch.extras.get("margins", torch.zeros_like(scores))
        wanted = margins[better] - margins[worse]
        if self._loss.tokens:
            assert outputs.values is not None
            lengths = batch.mask.sum(1)
            values = held_values(outputs.values, scores, lengths)
            span = parted(batch.grid(batch.labels), lengths, better, worse)
            each = masked_mean(self._loss.pair(values[better] - wanted[:, None], values[worse]), span, 1)
        else:
            each = self._loss.pair(scores[better] - wanted, scores[worse])
        if self._center:
            each = each + self._center * (scores[better] + scores[worse]) ** 2
        return segment_mean(each, batch.tree_id[better], trees)

    def judge(self, outputs: Outputs, batch: Batch) -> Units:
        """Right pairs and pairs of each tree: the pairs of one ranking are not independent."""
        assert outputs.scores is not None
        better, worse = _pairs(batch)
        right = (outputs.scores[better] > outputs.scores[worse]).float()
        tree = batch.tree_id[better]
        zeros = torch.zeros(batch.n_trees, device=right.device)
        counted = zeros.index_add(0, tree, torch.ones_like(right))
        has_pairs = counted > 0
        return zeros.index_add(0, tree, right)[has_pairs], counted[has_pairs]

    def check(self, first: dict[str, float]) -> None:
        if self._fresh and abs(first["margin"]) > 1.0:
            raise ValueError(
                f"the first step's margin is {first['margin']:.2f}; a new head scores all answers near 0. "
                "The model's hidden states may be broken: check model_name_or_path."
            )


def _pairs(batch: Batch) -> tuple[Tensor, Tensor]:
    return ranking_pairs(batch.extras["preference"], batch.tree_id)


def with_preference(tree: Tree, scale: float = 0.0) -> Tree:
    """A pair or a ranking with ``extras["preference"]`` (B,), what people said, and ``margins``, `scale` times as much.

    A pair is the better answer and the worse one, whatever its margin.
    """
    said = tree.extras.get("scores", torch.tensor([1.0, 0.0]))
    margins = scale * said if "scores" in tree.extras else torch.zeros(2)
    preference = torch.tensor([1.0, 0.0]) if tree.n_branches == 2 and said[0] == said[1] else said
    return replace(tree, extras={"preference": preference, "margins": margins})


def moments(live: Live, batches: Sequence[Batch]) -> tuple[float, float, int]:
    """Mean and standard deviation of the rewards of all answers in batches, and how many answers, on all ranks alike.

    Args:
        batches: of this rank.
    """
    sums = [0.0, 0.0, 0.0]
    for batch in batches:
        scores = live.run(batch, Want(logprobs=False, scores=True)).scores
        assert scores is not None
        if batch.weight:
            x = scores.double()
            sums = [sums[0] + len(x), sums[1] + float(x.sum()), sums[2] + float((x**2).sum())]
    n, total, squares = over_ranks(live.accelerator, sums)
    if n < 2:
        return 0.0, 0.0, int(n)
    return total / n, math.sqrt(max(0.0, squares - total**2 / n) / (n - 1)), int(n)


def build(setup: Setup) -> Parts:
    options = setup.option(RewardOptions)
    tokens = LOSSES[options.reward_loss].tokens
    records, held_out = setup.records("preference")
    said = partial(with_preference, scale=options.reward_margin)
    plain = setup.trees(records, answers_trained=tokens, score_at=options.score_at)
    if plain and plain[0].n_branches == 2 and "scores" in plain[0].extras and not options.reward_margin:
        setup.say("margins and scores of pairs only order them; reward_margin: 1 wants them between rewards")
    train = plain.mapped(said)
    judged = setup.trees(held_out, HELD_OUT, answers_trained=tokens, score_at=options.score_at).mapped(said)
    model = setup.load_policy(scalar_head=True).without_lm_head()
    assert model.scalar_head is not None
    model.scalar_head.score_at, model.scalar_head.moments = options.score_at, None
    objective = PairwiseReward(
        options.reward_loss, fresh=not setup.has_scalar_head, center=options.center_rewards_coefficient
    )
    batches = setup.judged(model, judged)

    def settle(live: Live) -> None:
        mean, deviation, n = moments(live, batches)
        if deviation > 0:
            model.scalar_head.moments = mean, deviation  # type: ignore[union-attr]
            setup.say(
                f"{n} held-out answers, better and worse, score {mean:.3g} with a standard deviation of {deviation:.3g}; "
                "PPO counts rewards from there (score_normalization)"
            )

    return Parts(
        trained=model,
        main=model,
        objective=objective,
        feed=lambda live: setup.dataset_feed(model, train),
        validate=validator(objective, batches),
        settle=settle,
        held_out=HeldOut("accuracy", "higher"),
    )


STAGE = Stage(
    "preference",
    build,
    (RewardOptions,),
    answers_trained=False,
    score_at=lambda options: options[RewardOptions].score_at,
)
