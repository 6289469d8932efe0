"""Rewards against the data's own answers, and answers that were cut off."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.errors import UserError
from espalier.stages.objectives import grpo, ppo
from espalier.stages.policy import PolicyOptions, PolicyTerms, learned
from espalier.stages.rollouts import Roller
from espalier.stages.shaping import ScoreNormalizer
from espalier.trees import Tree, lay_out_tree
from tests.stages.conftest import far, rows, run, weights

Make = Callable[..., dict[str, Any]]


class Seen:
    """What rollouts give on: answers and their scores."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scores: list[torch.Tensor] = []
        self.trees: list[Tree] = []
        scored = Roller.scored

        def remembered(roller: Roller, *args: Any, **options: Any) -> list[Tree]:
            trees = scored(roller, *args, **options)
            self.scores += [tree.extras["scores"] for tree in trees]
            self.trees += trees
            return trees

        monkeypatch.setattr(Roller, "scored", remembered)


@pytest.fixture
def prompts(world: Path, tmp_path: Path) -> Callable[[int], str]:
    """A file of the demo's prompts, some of them without a reference."""

    def write(without: int = 0) -> str:
        file = tmp_path / f"prompts-{without}.jsonl"
        lines = [json.loads(line) for line in (world / "prompts.jsonl").read_text("utf-8").splitlines()]
        for row in lines[:without]:
            row.pop("reference", None)
            row.pop("completion", None)
        file.write_text("".join(json.dumps(row) + "\n" for row in lines), "utf-8")
        return str(file)

    return write


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["rule", "model"])
def test_the_reference_s_own_reward_is_taken_from_each_answer(
    reward: str, options: Make, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = (
        {"reward_function": "brevity"}
        if reward == "rule"
        else {"reward_model": str(world / "judge"), "reward_function": None}
    )
    found: dict[str, list[torch.Tensor]] = {}
    for baseline in ("none", "reference"):
        with monkeypatch.context() as patch:
            seen = Seen(patch)
            made = options(
                "grpo", **chosen, reward_baseline=baseline, max_steps=1, eval_steps=0, resume=False
            )
            run(made)
            found[baseline] = seen.scores
            trees = seen.trees
    assert len(trees) == 8
    for tree, plain, less in zip(trees, found["none"], found["reference"], strict=True):
        taken = plain - less
        assert torch.allclose(taken, taken[:1].expand_as(taken), atol=1e-5), "one number a prompt"
        if reward == "rule":
            line = json.loads(
                (world / "prompts.jsonl")
                .read_text("utf-8")
                .splitlines()[int(tree.source.rpartition(":")[2]) - 1]
            )
            reference = line.get("reference") or line["completion"]
            assert float(taken[0]) == pytest.approx(-len(reference) / 100, abs=1e-6)
    assert (
        max(float((a - b).abs().max()) for a, b in zip(found["none"], found["reference"], strict=True)) > 0.01
    )


def test_a_prompt_without_a_reference_is_named(options: Make, prompts: Callable[[int], str]) -> None:
    with pytest.raises(
        UserError, match=r"prompts-1\.jsonl:1: reward_baseline: reference scores the reference answer"
    ):
        run(options("grpo", dataset=[prompts(1)], reward_baseline="reference", eval_dataset=None, val_size=0))
    with pytest.raises(UserError, match=r"prompts-1\.jsonl:1: score_normalization: reference scores"):
        run(
            options(
                "ppo", dataset=[prompts(1)], score_normalization="reference", eval_dataset=None, val_size=0
            )
        )


@pytest.mark.slow
def test_scores_by_the_mean_and_spread_of_the_reference_answers(
    options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[torch.Tensor] = []
    take = ScoreNormalizer.take
    monkeypatch.setattr(
        ScoreNormalizer, "take", lambda self, scores: (taken.append(scores), take(self, scores))[1]
    )
    chosen = options(
        "ppo", score_normalization="reference", reward_clip=None, max_steps=4, rollout_prompts=8, save_steps=2
    )
    run(chosen)
    assert [len(scores) for scores in taken] == [24], "once, all references"
    normalizer = ScoreNormalizer("reference")
    normalizer.take(taken[0])
    assert not normalizer.wants_references
    again = normalizer(taken[0])
    assert float(again.mean()) == pytest.approx(0, abs=1e-5) and float(again.std()) == pytest.approx(
        1, abs=1e-5
    )
    assert torch.equal(normalizer(taken[0]), again), "what is sampled moves nothing"
    other = options(
        "ppo", score_normalization="none", reward_clip=None, max_steps=4, rollout_prompts=8, resume=False
    )
    expected = weights(chosen)
    run(other)
    assert far(weights(other), expected) > 1e-6


def grids(lengths: list[int], ended: list[float], **more: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    paths = [([0, *range(1, n + 1)], [False] + [True] * n) for n in lengths]
    tree = Tree.join(
        [
            ([0] + [10 * i + j for j in range(1, n + 1)], trained)
            for i, (n, (_, trained)) in enumerate(zip(lengths, paths, strict=True), 1)
        ]
    )
    count, width = len(lengths), max(lengths)
    known = {
        name: torch.randn(count, width, generator=generator)
        for name in ("old_logprobs", "ref_logprobs", "old_values", "returns", "kl")
    }
    flat = {"scores": torch.randn(count, generator=generator), "ptx": torch.zeros(count)}
    return lay_out_tree(
        [tree.with_extras(**known, **flat, shaped=flat["scores"], learned=torch.tensor(ended), **more)]
    )


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_cut_answers_have_no_gradient_and_count_for_nothing(stage: str) -> None:
    from espalier.models.forward import Outputs

    terms = PolicyTerms(PolicyOptions(kl_in="loss", kl_estimator="k3"), lambda: 0.1)
    if stage == "ppo":
        objective: Any = ppo.ClippedObjective(ppo.Weights(), terms)
        batch = grids([2, 3, 4], [1.0, 0.0, 1.0], advantages=torch.randn(3, 4))
    else:
        objective = grpo.GroupObjective(grpo.GRPOOptions(), 8, terms)
        batch = grids([2, 3, 4], [1.0, 0.0, 1.0], advantages=torch.randn(3))
    logprobs = torch.randn(batch.shape, requires_grad=True)
    values = torch.randn(batch.shape, requires_grad=True)
    loss, numbers = objective.loss(Outputs(logprobs=logprobs, values=values), batch)
    loss.backward()
    assert logprobs.grad is not None
    assert not logprobs.grad[1].any() and logprobs.grad[0].any() and logprobs.grad[2].any()
    if stage == "ppo":
        assert values.grad is not None and not values.grad[1].any()
    assert objective.count(batch) == 6 == int(learned(batch).sum())
    assert float(numbers["answer_tokens"][0]) == 9, "lengths are those of all answers"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_run_whose_answers_are_all_cut_learns_nothing_and_says_so(
    stage: str, options: Make, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from espalier.rollout import experience

    answered = experience.answer_group
    monkeypatch.setattr(
        experience,
        "answer_group",
        lambda *given: replace(made := answered(*given), ended=[False] * len(made.texts)),
    )
    chosen = options(stage, mask_truncated_completions=True, max_new_tokens=2, max_steps=2)
    run(chosen)
    base = load_file(world / "base" / "model.safetensors")
    made = weights(chosen)
    assert far({k: made[k] for k in made if k in base}, {k: base[k] for k in made if k in base}) == 0
    assert [row["idle_steps"] for row in rows(chosen) if "idle_steps" in row][-1] == 2


def test_a_reference_is_scored_once() -> None:
    from espalier.rollout.asked import Ask
    from espalier.stages.reference_answers import ReferenceAnswers

    class Fake:
        class tokenizer:
            @staticmethod
            def encode(text: str, add_special_tokens: bool) -> list[int]:
                return [ord(c) for c in text]

        stop = (7, 8)

    asked: list[list[str]] = []

    def score(groups: list[Any]) -> list[torch.Tensor]:
        asked.append([group.texts[0] for group in groups])
        assert all(group.ended == [True] and group.tree.paths()[0][0].tolist()[-1] == 7 for group in groups)
        return [torch.tensor([float(len(group.texts[0]))]) for group in groups]

    answers = ReferenceAnswers(Fake())  # type: ignore[arg-type]
    one, two = Ask([1, 2], "a", "xyz"), Ask([1, 3], "b", "pre-uv", prefix="pre-")
    assert answers.rewards([one, two, one], score) == [3.0, 2.0, 3.0]
    assert answers.rewards([two], score) == [2.0] and asked == [["xyz", "uv"]]
