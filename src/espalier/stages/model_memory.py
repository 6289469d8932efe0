"""What the models of PPO and GRPO take: each by itself, or adapters over one frozen base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from espalier.config.option_set import OptionSet
from espalier.config.options import AdapterOptions, EngineOptions, LoraOptions, Options, option
from espalier.errors import UserError
from espalier.models.adapters.adapter import is_adapted, is_adapter
from espalier.models.forward import TreeModel
from espalier.models.frozen_trunk import FrozenTrunk, common_depth
from espalier.models.offload import park
from espalier.models.quantise.methods import Quantisation
from espalier.models.quantise.turn import is_quantised, quantised
from espalier.models.reference import frozen_copy
from espalier.models.sharing import held_bytes, lacks_base, share_frozen
from espalier.stages.quantised import check_whole, holds_whole
from espalier.stages.setup import Setup


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(Options):
    """What the models beside the policy take."""

    model_memory: Literal["separate", "shared"] = option(
        "separate",
        "Models of their own, or (shared) policy, critic and reward model as LoRA adapters over one frozen base, which is "
        "the reference.",
    )
    frozen_bits: Literal[4, 8] | None = option(
        None,
        "Store reference and reward model in so many bits (cpm); their numbers change a little, and so do rewards and KL.",
    )
    frozen_offload: bool = option(
        False,
        "Keep reference, teacher and reward models in the CPU's memory, and on the GPU only while they are asked.",
        same_result=True,
    )


def check_memory(options: OptionSet) -> None:
    """Refuse `model_memory: shared` where there is no frozen base that could be shared, and few bits where weights are cut.

    Raises:
        UserError: all weights are trained, or no process holds them whole.
    """
    memory = options[MemoryOptions]
    if memory.frozen_bits is not None:
        check_whole(options[EngineOptions])
        if memory.model_memory == "shared":
            raise UserError(
                "frozen_bits with model_memory: shared is not possible: the base is the policy's. Set quantization_bit for "
                "the one base, or remove one of the two."
            )
    if memory.model_memory != "shared":
        return
    if options[LoraOptions].pissa_init:
        raise UserError(
            "model_memory: shared with pissa_init is not possible: the policy takes a part out of the one base. Remove one."
        )
    kind, engine = options[AdapterOptions].finetuning_type, options[EngineOptions]
    if kind != "lora":
        raise UserError(
            f"model_memory: shared with finetuning_type: {kind} is not possible: the one base must stay as it is. Set "
            "finetuning_type: lora."
        )
    if not holds_whole(engine):
        raise UserError(
            f"model_memory: shared with strategy: {engine.strategy} is not possible: it cuts or casts the base. Use "
            "strategy: single or ddp."
        )


def load_scorer(setup: Setup, name: str, tokenizer: Any = None) -> TreeModel:
    """A frozen reward model; as its adapter over its base where the base is shared.

    Args:
        tokenizer: its own, where it does not read the policy's ids; then it shares nothing.
    """
    if _is_shared(setup) and tokenizer is None:
        model = setup.load_stacked(_adapter(name), trainable=False)
    else:
        model = setup.load_frozen(name, scalar_head=True, tokenizer=tokenizer)
    return _in_few_bits(setup, model).eval().requires_grad_(False)  # type: ignore[return-value]


def load_reference(setup: Setup, policy: TreeModel) -> TreeModel | None:
    """The frozen copy of a policy at its start; None where only an adapter is trained, whose start can be put back."""
    made = frozen_copy(policy)
    return None if made is None else _in_few_bits(setup, made).requires_grad_(False)  # type: ignore[return-value]


def _in_few_bits(setup: Setup, model: TreeModel) -> TreeModel:
    bits = setup.option(MemoryOptions).frozen_bits if MemoryOptions in setup.options else None
    if bits is None or is_quantised(model.lm):
        return model
    if is_adapted(model.lm):
        raise UserError(
            "frozen_bits: a model with virtual tokens on top cannot be stored in few bits. Remove it."
        )
    lm = quantised(model.lm, Quantisation("cpm", bits))
    return TreeModel(lm, setup.traits(lm), model.scalar_head).to(setup.device)


def load_critic(setup: Setup, reward_model: str | None) -> TreeModel:
    """A trainable copy of the reward model; without one, of the policy's start with a fresh head.

    Where the base is shared it is the reward model's adapter that learns on.
    """
    if reward_model is not None and _is_shared(setup):
        return setup.load_stacked(_adapter(reward_model), trainable=True).without_lm_head()
    return setup.load_policy(reward_model, scalar_head=True).without_lm_head()


def share_weights(setup: Setup, policy: TreeModel, **others: nn.Module | None) -> None:
    """Hold once what policy and others have alike and nobody trains; says how much that is.

    Raises:
        UserError: the base is to be shared, and a model stands on another one.
    """
    if not holds_whole(setup.option(EngineOptions)):
        return
    saved = share_frozen(policy, *others.values())
    if _is_shared(setup):
        for name, model in others.items():
            stacked = isinstance(model, TreeModel) and is_adapted(model.lm)
            different = lacks_base(model, policy) if stacked and model is not None else None
            if different is not None:
                raise UserError(
                    f"model_memory: shared: {different} of the {name} is not that of the policy, so they do not stand on "
                    "one base. Train the reward model with finetuning_type: lora from this model_name_or_path, or set "
                    "model_memory: separate."
                )
    if saved:
        held = held_bytes(policy, *others.values())
        names = ", ".join(["policy", *(name for name, model in others.items() if model is not None)])
        setup.say(
            f"{names}: {held / 2**20:,.1f} MiB of weights; {saved / 2**20:,.1f} MiB that are the same are held once"
        )


def share_blocks(setup: Setup, **models: TreeModel | None) -> None:
    """Run the lowest blocks that are frozen and the same in these models once for all; says how many they are.

    They are looked for after `share_weights`; models that are asked about the very same batch gain by it.
    """
    present = {name: model for name, model in models.items() if model is not None}
    depth = common_depth([model.lm for model in present.values()])
    if not depth:
        return
    trunk = FrozenTrunk(depth)
    for model in present.values():
        model.frozen_trunk = trunk
    setup.say(
        f"{', '.join(present)}: the lowest {depth} blocks are frozen and the same, and run once for all"
    )


def park_frozen(setup: Setup, trained: nn.Module, **others: nn.Module | None) -> None:
    """Let frozen models wait in the CPU's memory where `frozen_offload` says so; says how much that is.

    After `share_weights`: what a trained model holds too stays with it.
    """
    if not setup.option(MemoryOptions).frozen_offload:
        return
    if _on_cpu(setup.device):
        setup.say("frozen_offload: this run computes on the CPU, where the weights are already")
        return
    present = {name: model for name, model in others.items() if model is not None}
    freed = {}
    for name, model in present.items():
        beside = [trained, *(other for other in present.values() if other is not model)]
        freed[name] = park(model, beside, setup.device)
    listed = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in freed.items())
    setup.say(f"frozen_offload: in the CPU's memory between questions: {listed or 'nothing'}")


def _on_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def _is_shared(setup: Setup) -> bool:
    return MemoryOptions in setup.options and setup.option(MemoryOptions).model_memory == "shared"


def _adapter(name: str) -> str:
    if not is_adapter(name):
        raise UserError(
            f"{name}: is a whole model, and model_memory: shared wants an adapter over the policy's base. Train the reward "
            "model with finetuning_type: lora, or set model_memory: separate."
        )
    return name
