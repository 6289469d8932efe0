"""A run whose first step cannot be right is refused in words; a sound one is not."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from espalier import config
from espalier.errors import UserError
from espalier.maths.preferences import PREFERENCES, PreferenceLoss
from espalier.models.heads import ScalarHead
from espalier.runs.catalogue import CLASSES, check_possible
from espalier.stages import model_memory, references
from espalier.stages.guards import SHIFT, check_apart, check_first_step
from espalier.stages.rollouts import Roller
from espalier.stages.setup import Setup
from espalier.trees import Tree
from tests.stages.conftest import rows, run

Make = Callable[..., dict[str, Any]]
REFUSED = "refused after its first step"


def bent(model: nn.Module) -> nn.Module:
    """A copy whose weights are not quite the same."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.manual_seed(0)), alpha=0.1)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "wanted"), [("sigmoid", 0.6931), ("ipo", 25.0), ("hinge", 1.0)])
def test_dpo_begins_at_the_loss_of_equals(loss: str, wanted: float, options: Make) -> None:
    chosen = options("dpo", pref_loss=loss, max_steps=1)
    run(chosen)
    assert [row["loss"] for row in rows(chosen) if "loss" in row] == pytest.approx([wanted], rel=1e-4)


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_dpo_against_another_reference_than_its_start_is_refused(
    loss: str, options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = references.frozen_copy
    monkeypatch.setattr(references, "frozen_copy", lambda policy: bent(frozen(policy)))
    with pytest.raises(UserError, match=rf"{REFUSED}.*DPO loss is .* and must be .*Check dropout, adapters"):
        run(options("dpo", pref_loss=loss, pref_beta=0.5))


@pytest.mark.slow
def test_a_further_preference_loss_is_a_row(options: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tang et al. 2024 (GPO), the exponential loss: exp(-beta * margin)."""

    def exponential(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
        return torch.exp(-beta * ((pc - rc) - (pr - rr)))

    row = PreferenceLoss(exponential, "sum", "Tang et al. 2024, table 1")
    monkeypatch.setitem(PREFERENCES, "hinge", row)
    chosen = options("dpo", pref_loss="hinge", max_steps=2, learning_rate=0.05)
    run(chosen)
    first, second = [step["loss"] for step in rows(chosen) if "loss" in step]
    assert first == pytest.approx(1.0, rel=1e-4) and second != pytest.approx(1.0, rel=1e-4)
    monkeypatch.setattr(PreferenceLoss, "at_start", lambda row, **settings: 2.0)
    with pytest.raises(UserError, match=rf"{REFUSED}.*DPO loss is 1\.0000 and must be 2\.0000"):
        run(options("dpo", pref_loss="hinge", resume=False))


def test_a_preference_loss_without_a_reference_loads_none(
    options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def margin_alone(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
        assert not rc.any() and not rr.any()
        return -logsigmoid(beta * (pc - pr))

    row = PreferenceLoss(margin_alone, "mean", "Xu et al. 2024 (CPO), of means", reference=False)
    monkeypatch.setitem(PREFERENCES, "hinge", row)
    monkeypatch.setattr(references, "frozen_copy", lambda policy: pytest.fail("nobody asks for a reference"))
    chosen = options("dpo", pref_loss="hinge", max_steps=1)
    run(chosen)
    sharded = {**chosen, "finetuning_type": "lora", "strategy": "fsdp"}
    for loss, bias, possible in (
        ("hinge", "all", True),
        ("sigmoid", "all", False),
        ("sigmoid", "none", True),
    ):
        keys = {**sharded, "pref_loss": loss, "lora_bias": bias}
        built = config.build(keys, CLASSES["dpo"], all_classes=CLASSES)
        refused = pytest.raises(
            UserError, match="in dpo with lora_bias: the reference is the adapter as it began"
        )
        with nullcontext() if possible else refused:
            check_possible("dpo", built)
    assert next(step["loss"] for step in rows(chosen) if "loss" in step) > 0
    for key, value in (("ref_model", "judge"), ("precompute_ref_logprobs", True)):
        built = config.build({**chosen, key: value}, CLASSES["dpo"], all_classes=CLASSES)
        with pytest.raises(UserError) as error:
            check_possible("dpo", built)
        assert str(error.value) == f"`{key}` is of no use: pref_loss: hinge has no reference. Remove it."


def test_a_reference_that_was_named_may_be_another(options: Make, world: Path) -> None:
    run(options("dpo", ref_model=str(world / "judge"), max_steps=1))


def test_a_new_reward_head_that_does_not_score_near_0_is_refused(
    options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ScalarHead.__init__

    def loud(self: ScalarHead, size: int) -> None:
        start(self, size)
        with torch.no_grad():
            self.weight.normal_(generator=torch.manual_seed(0)).mul_(200)

    monkeypatch.setattr(ScalarHead, "__init__", loud)
    with pytest.raises(UserError, match=rf"{REFUSED}.*margin is .*near 0.*check model_name_or_path"):
        run(options("reward"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_forward_that_disagrees_with_the_rollouts_is_refused(
    stage: str, options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the mean ratio is 1, as it is between any two policies."""
    measured = Roller.measured

    def wrong(self: Roller, *args: Any) -> list[Tree]:
        found = measured(self, *args)
        for tree in found:
            old = tree.extras["old_logprobs"]
            up = torch.arange(old.shape[1]) % 2 == 0
            old -= torch.where(up, math.log(1.3), math.log(0.7))
        return found

    monkeypatch.setattr(Roller, "measured", wrong)
    with pytest.raises(
        UserError, match=rf"{REFUSED}.*logprobs differ by 0\.3.* nats a token.*Check dropout and precision"
    ):
        run(options(stage))


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_reference_that_is_not_the_start_is_refused(
    stage: str, options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = model_memory.frozen_copy
    monkeypatch.setattr(model_memory, "frozen_copy", lambda policy: bent(frozen(policy)))
    with pytest.raises(UserError, match=rf"{REFUSED}.*KL from the reference is .*must be 0"):
        run(options(stage))


@pytest.mark.parametrize("precision", SHIFT)
def test_the_first_steps_numbers_have_room_for_rounding_and_no_more(precision: str) -> None:
    shift = SHIFT[precision]
    sound = {"logprob_shift": 0.9 * shift, "kl": -0.9 * shift, "answer_tokens": 10.0}
    check_first_step(sound, precision)
    for name, words in (("logprob_shift", "logprobs differ"), ("kl", "KL")):
        for value in (1.1 * shift, math.nan):
            with pytest.raises(ValueError, match=words):
                check_first_step({**sound, name: value}, precision)
    assert SHIFT["fp32"] == 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_sound_first_step_is_far_from_being_refused(stage: str, precision: str, options: Make) -> None:
    chosen = options(stage, precision=precision, max_steps=1, rollout_prompts=4)
    run(chosen)
    first = next(row for row in rows(chosen) if "logprob_shift" in row)
    assert first["logprob_shift"] <= SHIFT[precision] / 4 and abs(first["kl"]) <= SHIFT[precision] / 4


def test_an_answer_that_never_ends_is_refused_and_drawn(
    options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Setup, "stop", property(lambda self: (5,)))
    with pytest.raises(
        UserError,
        match=r"sft_train\.jsonl:\d+: the last trained token is not the end of a turn.*chat template",
    ):
        run(options("sft"))


def test_records_without_an_answer_are_refused(options: Make, tmp_path: Path) -> None:
    data = tmp_path / "asked.jsonl"
    asked = {"messages": [{"role": "user", "content": "What is 1 + 1?"}]}
    data.write_text("".join(json.dumps(asked) + "\n" for _ in range(9)), "utf-8")
    with pytest.raises(UserError, match=r"asked\.jsonl:1: there is no answer"):
        run(options("sft", dataset=[str(data)], eval_dataset=None))


def test_models_that_share_a_trained_weight_are_named() -> None:
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    check_apart(policy=one, critic=two, reward=None)
    two.bias = one.bias
    with pytest.raises(ValueError, match=r"policy and critic share a trainable weight of shape \(3,\)"):
        check_apart(policy=one, critic=two)
    one.bias.requires_grad_(False)
    check_apart(policy=one, critic=two)
