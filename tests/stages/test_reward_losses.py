"""Reward models: each loss from records to a trained model, margins from the data, and equality with TRL's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from espalier.config import build
from espalier.data.read.rows import parse_row
from espalier.data.records import BadRecord
from espalier.errors import UserError
from espalier.models.forward import Outputs
from espalier.runs.catalogue import CLASSES
from espalier.stages.objectives.reward import LOSSES, PairwiseReward, with_preference
from espalier.stages.setup import Setup
from espalier.trees import Batch, Tree
from espalier.trees.batch import lay_out_tree
from tests.stages.conftest import rows, run

Make = Callable[..., dict[str, Any]]


def batch_of(*said: list[float], scale: float = 1.0) -> Batch:
    trees = []
    for scores in said:
        paths = [([1, 2 + i, 3], [False, True, True]) for i in range(len(scores))]
        tree = Tree.join(paths, extras={"scores": torch.tensor(scores)})
        trees.append(with_preference(tree, scale))
    return lay_out_tree(trees)


@pytest.mark.parametrize("center", [0.0, 0.01])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_pairs_with_margins_and_centred_as_trl_has_them(center: float, scale: float) -> None:
    trainer = pytest.importorskip("trl.trainer.reward_trainer").RewardTrainer
    from tests.maths.test_against_trl import stand_in

    margins = [1.0, 3.0, 0.0, 0.5]
    batch = batch_of(*([margin, 0.0] for margin in margins), scale=scale)
    scores = torch.randn(8)
    objective = PairwiseReward("log_sig", fresh=False, center=center)
    total, _ = objective.loss(Outputs(scores=scores), batch)
    chosen_first = torch.cat([scores[::2], scores[1::2]])[:, None]
    inputs = {"attention_mask": torch.ones(8, 3), "margin": scale * torch.tensor(margins)}
    theirs = trainer.compute_loss(
        stand_in(args=SimpleNamespace(center_rewards_coefficient=center or None)),
        lambda **_: SimpleNamespace(logits=chosen_first),
        inputs,
    )
    assert objective.count(batch) == 4, "a margin of 0 is a pair as well"
    torch.testing.assert_close(total / 4, theirs)


def test_a_prompt_counts_once_however_many_answers_it_has() -> None:
    """Ouyang et al. 2022, eq. 1: the mean over a ranking's pairs."""
    batch, scores = batch_of([3.0, 2.0, 2.0, 1.0], [1.0, 0.0]), torch.randn(6)
    total, numbers = PairwiseReward("log_sig", fresh=False).loss(Outputs(scores=scores), batch)

    def one(i: int, j: int) -> torch.Tensor:
        return -torch.nn.functional.logsigmoid(scores[i] - scores[j])

    ranking = torch.stack([one(i, j) for i, j in ((0, 1), (0, 2), (0, 3), (1, 3), (2, 3))])
    # The margins of these scores are 1 or 2; without them:
    plain = batch_of([3.0, 2.0, 2.0, 1.0], [1.0, 0.0], scale=0.0)
    unmoved, _ = PairwiseReward("log_sig", fresh=False).loss(Outputs(scores=scores), plain)
    torch.testing.assert_close(unmoved, ranking.mean() + one(4, 5))
    assert total > unmoved and numbers["loss"][1] == 2 and numbers["accuracy"][1] == 6


def test_the_documents_name_every_loss() -> None:
    page = (Path(__file__).parents[2] / "docs" / "stages.md").read_text("utf-8")
    table = page.partition("## Losses of reward models")[2].partition("\n## ")[0]
    assert all(f"`{name}`" in table for name in LOSSES)


def test_a_margin_is_read_with_its_pair() -> None:
    row = {"prompt": "2+3=?", "chosen": "5", "rejected": "6", "margin": 2}
    pair = parse_row(row, "a.jsonl:1", "preference")
    assert [answer.score for answer in pair.answers] == [2.0, 0.0]
    assert parse_row(row | {"margin": None}, "a.jsonl:1", "preference").answers[0].score is None
    for wrong in ("big", -1, True, float("inf")):
        bad = parse_row(row | {"margin": wrong}, "a.jsonl:7", "preference")
        assert isinstance(bad, BadRecord) and "'margin' holds" in bad.reason and bad.source == "a.jsonl:7"


@pytest.mark.parametrize("key", ["reward_margin", "center_rewards_coefficient"])
def test_what_is_of_pairs_is_refused_elsewhere(key: str) -> None:
    raw = {"stage": "reward", "model_name_or_path": "m", "dataset": "d", "reward_loss": "mse", key: 1.0}
    with pytest.raises(UserError, match=f"`{key}` belongs to losses of pairs, not to reward_loss: mse"):
        build(raw, CLASSES["reward"], all_classes=CLASSES)


@pytest.mark.slow
def test_pairs_with_and_without_a_margin_are_learned_together(
    options: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "pairs.jsonl"
    pairs = [
        {"prompt": f"Say {n}.", "chosen": "yes", "rejected": "no", "margin": n % 3 or None} for n in range(12)
    ]
    pairs[0], pairs[1] = pairs[1], pairs[0]
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs), "utf-8")
    for stage, keys in (("reward", {"reward_margin": 1.0}), ("reward", {}), ("dpo", {})):
        chosen = options(stage, dataset=[str(data)], eval_dataset=None, max_steps=1, samples=0,
                         output_dir=str(tmp_path / f"{stage}{len(keys)}"), **keys)  # fmt: skip
        run(chosen)
        assert any("loss" in row for row in rows(chosen))
        told = "reward_margin: 1 wants them" in capsys.readouterr().err
        assert told == (stage == "reward" and not keys), "what is not used is said"


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_is_learned(loss: str, options: Make, tmp_path: Path) -> None:
    asked = [f"Say {n}." for n in range(24)]
    data = tmp_path / "ranked.jsonl"
    scored = [
        {"prompt": p, "answers": [{"answer": a, "score": s} for a, s in (("yes, 1", 1.0), ("well", 0.3), ("no", -1.0))]}
        for p in asked
    ]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in scored), "utf-8")
    keys = {"reward_margin": 0.5, "center_rewards_coefficient": 0.01} if LOSSES[loss].pair else {}
    chosen = options("reward", reward_loss=loss, dataset=[str(data)], eval_dataset=None, val_size=4, max_steps=12,
                     learning_rate=0.01, samples=0, **keys)  # fmt: skip
    run(chosen)
    steps = [row for row in rows(chosen) if "loss" in row]
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"] and steps[-1]["accuracy"] == 1.0
    assert 0.5 <= steps[0]["confidence"] < 0.6 < steps[-1]["confidence"]


def test_a_run_reads_a_reward_model_where_it_is_told(
    options: Make, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose folder says nothing is read behind the whole turn, and a line says so."""
    monkeypatch.setattr(Setup, "stop", property(lambda self: tuple(range(0, 300, 2))))  # so that answers end
    rewards = {}
    for place in ("answer", "turn", None):
        chosen = options(
            "grpo", reward_model=str(world / "judge"), reward_function=None, max_steps=1, resume=False
        )
        summary = run({**chosen, "reward_score_at": place})
        rewards[place] = [row["reward"] for row in rows(chosen) if "reward" in row]
        assert any("does not say at which token" in note for note in summary["notes"]) == (place is None)
    assert rewards["turn"] == rewards[None] != rewards["answer"]
