"""Policy, critic, reference and reward model over one frozen base: the same numbers, the weights once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from espalier import config
from espalier.errors import UserError
from espalier.models.quantise.turn import is_quantised
from espalier.models.sharing import held_bytes, lacks_base, share_frozen
from espalier.runs.catalogue import CLASSES, check_possible
from espalier.stages import model_memory
from tests.stages.conftest import far, options_of, rows, run, weights

Make = Callable[..., dict[str, Any]]
LORA = {"finetuning_type": "lora", "lora_rank": 4}


@pytest.fixture(scope="module")
def judge(world: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward model that is an adapter over the base."""
    folder = tmp_path_factory.mktemp("judge")
    run(options_of(world, folder, "reward", **LORA, learning_rate=0.02, max_steps=6))
    return str(folder / "reward" / "model")


class Kept:
    """Remembers the models whose weights were shared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: list[nn.Module] = []
        share = model_memory.share_frozen

        def remembered(*models: nn.Module | None) -> int:
            self.models = [model for model in models if model is not None]
            return share(*models)

        monkeypatch.setattr(model_memory, "share_frozen", remembered)


def frozen(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if not p.requires_grad and "lora" not in n}


@pytest.mark.slow
def test_one_base_gives_the_numbers_of_separate_models(
    judge: str, options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, told = Kept(monkeypatch), {}
    for memory in ("separate", "shared"):
        chosen = options("ppo", **LORA, reward_model=judge, model_memory=memory, resume=False, max_steps=2)
        run(chosen)
        first = next(row for row in rows(chosen) if "loss" in row)
        base = sum(4 * p.numel() for p in frozen(kept.models[0]).values())
        adapters = {
            id(p): p for m in kept.models for n, p in m.named_parameters() if "lora" in n or "scalar" in n
        }
        whole = held_bytes(*kept.models) - sum(4 * p.numel() for p in adapters.values())
        told[memory] = (first, whole / base, weights(chosen, "critic"))
    policy, critic, reward = kept.models
    assert lacks_base(critic, policy) is None and lacks_base(reward, policy) is None
    (separate, apart, own), (shared, together, stacked) = told["separate"], told["shared"]
    for name in ("reward", "kl", "answer_tokens", "policy_loss"):
        assert shared[name] == pytest.approx(separate[name], abs=1e-5), name
    assert together == 1 and apart > 1.5, "bases: the merged reward model is one of its own"
    assert any("lora" in name for name in stacked) and any("lora" in name for name in own)
    trained = [
        {n for n, p in model.named_parameters() if p.requires_grad} for model in (policy, critic, reward)
    ]
    assert trained[0] and trained[1] and not trained[2]


@pytest.mark.slow
def test_a_fixed_answer_has_the_same_reward_before_and_after(
    judge: str, options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(monkeypatch)
    chosen = options(
        "ppo", **LORA, reward_model=judge, model_memory="shared", learning_rate=0.05, max_steps=3
    )
    before: list[torch.Tensor] = []

    def state(model: nn.Module) -> list[torch.Tensor]:
        return [p.detach().clone() for p in model.parameters()]

    share = model_memory.share_frozen

    def remembered(*models: nn.Module | None) -> int:
        saved = share(*models)
        before.extend(state(kept.models[-1]))
        return saved

    monkeypatch.setattr(model_memory, "share_frozen", remembered)
    run(chosen)
    policy, _, reward = kept.models
    assert all(torch.equal(a, b) for a, b in zip(before, state(reward), strict=True))
    moved = {n: p for n, p in policy.named_parameters() if "lora_B" in n}
    assert moved and all(bool(p.any()) for p in moved.values()), "the policy has learned over the same base"


def test_only_frozen_weights_that_are_the_same_are_shared() -> None:
    one, two, three = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    two.load_state_dict(one.state_dict())
    three.load_state_dict(one.state_dict())
    assert share_frozen(one, two) == 0, "both are trained"
    two.requires_grad_(False)
    three.requires_grad_(False)
    assert share_frozen(one, two) == 0, "the first is trained"
    with torch.no_grad():
        three.bias.add_(1e-7)
    assert share_frozen(two, three, None) == 36 and three.weight is two.weight and three.bias is not two.bias
    assert held_bytes(two, three) == 36 + 2 * 12
    four = nn.Linear(3, 3).to(torch.bfloat16).requires_grad_(False)
    assert share_frozen(two, four) == 0


def test_tied_weights_stay_tied() -> None:
    def tied() -> nn.Module:
        module = nn.ModuleDict({"embeddings": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
        torch.manual_seed(0)
        nn.init.normal_(module["embeddings"].weight)
        module["head"].weight = module["embeddings"].weight
        return module.requires_grad_(False)

    one, two = tied(), tied()
    assert share_frozen(one, two) == 80
    assert two["head"].weight is two["embeddings"].weight is one["head"].weight


@pytest.mark.slow
def test_lower_blocks_that_are_frozen_are_held_once(
    options: Make, monkeypatch: pytest.MonkeyPatch, world: Path
) -> None:
    kept = Kept(monkeypatch)
    chosen = options(
        "ppo",
        finetuning_type="freeze",
        freeze_ratio=0.5,
        max_steps=1,
        reward_function="brevity",
        reward_model=None,
    )
    run(chosen)
    policy, critic, reference = kept.models
    shared = {id(p) for p in policy.parameters()} & {id(p) for p in reference.parameters()}
    assert {id(p) for p in frozen(policy).values()} == shared and shared
    assert {id(p) for p in critic.parameters()} & shared, "the critic began as the policy's start"


def test_a_whole_reward_model_has_no_base_to_share(options: Make) -> None:
    with pytest.raises(UserError, match="judge: is a whole model, and model_memory: shared wants an adapter"):
        run(options("ppo", **LORA, model_memory="shared"))


def test_an_adapter_over_another_base_is_refused(judge: str, options: Make, world: Path) -> None:
    with pytest.raises(UserError, match=r"model_memory: shared: .* of the critic is not that of the policy"):
        run(options("ppo", **LORA, model_memory="shared", reward_model=judge, model_name_or_path=None,
                    tokenizer=str(world / "base"), model_config=str(world / "base" / "config.json")))  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "with finetuning_type: full is not possible"),
        ({**LORA, "strategy": "zero2"}, "with strategy: zero2 is not"),
    ],
)
def test_what_has_no_frozen_base_is_refused(changes: dict[str, Any], words: str, options: Make) -> None:
    values = options("ppo", model_memory="shared", **changes)
    with pytest.raises(UserError, match=words):
        check_possible("ppo", config.build(values, CLASSES["ppo"], all_classes=CLASSES))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_frozen_blocks_that_run_once_change_no_number(
    stage: str, options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {"finetuning_type": "freeze", "freeze_ratio": 0.5, "max_steps": 3, "resume": False}
    if stage == "ppo":
        extra |= {"reward_function": "brevity", "reward_model": None}
    counts: dict[bool, int] = {}
    made: dict[bool, Any] = {}
    forward = LlamaDecoderLayer.forward
    for shared in (True, False):
        ran = [0]

        def counted(self: Any, *args: Any, _ran: list[int] = ran, **kwargs: Any) -> Any:
            _ran[0] += self.self_attn.layer_idx == 0
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(LlamaDecoderLayer, "forward", counted)
        if not shared:
            monkeypatch.setattr(model_memory, "common_depth", lambda models: 0)
        chosen = options(stage, **extra)
        run(chosen)
        counts[shared], made[shared] = ran[0], (weights(chosen), rows(chosen)[-1]["eval_reward"])
    few = {"ppo": 0.75, "grpo": 0.9}[stage]
    assert counts[True] < few * counts[False], "the lowest block ran once where it ran for each model"
    assert far(made[True][0], made[False][0]) < 1e-7 and made[True][1] == pytest.approx(
        made[False][1], abs=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_reference_and_reward_model_in_few_bits(
    stage: str, options: Make, monkeypatch: pytest.MonkeyPatch, world: Path
) -> None:
    kept = Kept(monkeypatch)
    extra = {"reward_model": str(world / "judge"), "reward_function": None, "max_steps": 2, "resume": False}
    told = {}
    for bits in (None, 8):
        chosen = options(stage, **extra, frozen_bits=bits)
        run(chosen)
        told[bits] = (
            [is_quantised(m.lm) for m in kept.models],
            next(row for row in rows(chosen) if "loss" in row),
        )
    few = {"ppo": [False, False, True, True], "grpo": [False, True, True]}[stage]
    assert told[8][0] == few and not any(told[None][0]), "policy and critic stay as they are"
    assert 0 < abs(told[8][1]["kl"]) < 0.1 and told[None][1]["kl"] == pytest.approx(0, abs=1e-6)
    assert told[8][1]["reward"] == pytest.approx(told[None][1]["reward"], abs=0.1)
    assert told[8][1]["reward"] != told[None][1]["reward"]
