"""Adapters through PEFT: what is trained besides, or instead of, the weights; and the reference without it.

This is the one door to PEFT.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from espalier.errors import UserError
from espalier.models.tying import tie_again, untie


def linear_names(lm: nn.Module) -> list[str]:
    """Names (last parts) of the linear layers inside the blocks, the head left out."""
    head = lm.get_output_embeddings()  # type: ignore[operator]
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in lm.named_modules()
            if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and module is not head
        }
    )


def add_lora(
    lm: nn.Module, *, rank: int, alpha: float | None, dropout: float, target: list[str] | None, bias: str
) -> nn.Module:
    """The model with low-rank adapters (Hu et al. 2021); everything else is frozen.

    Args:
        lm: a causal language model.
        rank: of the update, at least 1.
        alpha: the update is scaled by alpha / rank; None is 2 * rank.
        dropout: on the adapter's input, 0 to 1; no effect on the reference.
        target: names of linear layers (last parts); None or ["all"] is all of the blocks'.
        bias: "none", "all" or "lora_only".

    Raises:
        UserError: a target that no module has.
    """
    exists = linear_names(lm)
    wanted = exists if target is None or target in (["all"], ["auto"]) else target
    missing = [name for name in wanted if name not in exists]
    if missing:
        raise UserError(
            f"lora_target: {', '.join(missing)} matches no linear layer. This model has {', '.join(exists)}."
        )
    settings = LoraConfig(
        r=rank,
        lora_alpha=int(2 * rank if alpha is None else alpha),
        lora_dropout=dropout,
        target_modules=wanted,
        bias=bias,  # type: ignore[arg-type]
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in lm.modules()),
    )
    return get_peft_model(lm, settings)  # type: ignore[arg-type]


def load_adapter(lm: nn.Module, folder: str, *, trainable: bool) -> nn.Module:
    """The model with a saved adapter on it."""
    if not (Path(folder) / "adapter_config.json").is_file():
        raise UserError(f"{folder}: no adapter_config.json here. Wanted a folder that PEFT has saved.")
    return PeftModel.from_pretrained(lm, folder, is_trainable=trainable)  # type: ignore[arg-type]


def is_adapted(lm: nn.Module) -> bool:
    return isinstance(lm, PeftModel)


def merged(lm: nn.Module) -> nn.Module:
    """The plain model with its adapter added to the weights; tied embeddings come apart where it changes one side."""
    if not isinstance(lm, PeftModel):
        return lm
    settings: Any = lm.active_peft_config
    # An adapter that was told to keep them tied changes both, and PEFT merges both.
    untied = not vars(settings).get("ensure_weight_tying") and untie(lm)
    plain: nn.Module = lm.merge_and_unload()  # type: ignore[operator]
    if untied:
        tie_again(plain)
    return plain


@contextmanager
def reference(lm: nn.Module) -> Iterator[nn.Module]:
    """The model as it was before training, without a copy: its adapter is off inside the block.

    Dropout is off too, so that policy and reference differ by the adapter alone.
    """
    assert isinstance(lm, PeftModel), "a reference without a copy needs an adapter that can be switched off"
    training = lm.training
    lm.eval()
    try:
        with lm.disable_adapter(), torch.no_grad():
            yield lm
    finally:
        lm.train(training)
