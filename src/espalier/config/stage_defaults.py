"""Defaults that depend on the stage, each with where it comes from.

What is right for SFT ruins a policy in PPO: the rates of the stages differ by a factor of twenty in every published
recipe. Adapters want higher rates than whole models, whatever the stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class StageDefault(NamedTuple):
    """A default in one stage, and whose choice it is."""

    value: Any
    source: str


class ByStage(NamedTuple):
    """The default of a key that depends on the stage.

    Attributes:
        otherwise: of the stages that have none of their own.
        stages: by the name of the stage.
        is_rate: whether adapters want more of it than whole models (`ADAPTER_RATES`).
    """

    otherwise: Any
    stages: Mapping[str, StageDefault]
    is_rate: bool = False


_LEARNING_RATES = {
    "pretrain": StageDefault(5e-5, "transformers"),
    "sft": StageDefault(2e-5, "TRL"),
    "reward": StageDefault(9e-6, "OpenRLHF; Ouyang et al. 2022"),
    "dpo": StageDefault(1e-6, "TRL"),
    "kto": StageDefault(1e-6, "TRL"),
    "ppo": StageDefault(3e-6, "TRL before 1.0, which had PPO"),
    "grpo": StageDefault(1e-6, "TRL; Shao et al. 2024"),
}

LEARNING_RATE = ByStage(5e-5, _LEARNING_RATES, is_rate=True)

_EPOCHS = {
    "pretrain": StageDefault(1.0, "each text once, as is usual"),
    "sft": StageDefault(3.0, "TRL"),
    "reward": StageDefault(1.0, "Ouyang et al. 2022: more overfits"),
    "dpo": StageDefault(1.0, "OpenRLHF"),
    "kto": StageDefault(1.0, "Ethayarajh et al. 2024"),
    "ppo": StageDefault(1.0, "OpenRLHF"),
    "grpo": StageDefault(1.0, "OpenRLHF"),
}

EPOCHS = ByStage(3.0, _EPOCHS)

KL_COEF = ByStage(
    0.05,
    {
        "ppo": StageDefault(0.05, "TRL before 1.0, which had PPO"),
        "grpo": StageDefault(0.04, "Shao et al. 2024"),
    },
)

KL_IN = ByStage(
    "reward",
    {"ppo": StageDefault("reward", "Ouyang et al. 2022"), "grpo": StageDefault("loss", "Shao et al. 2024")},
)

KL_ESTIMATOR = ByStage(
    "k1", {"ppo": StageDefault("k1", "Ouyang et al. 2022"), "grpo": StageDefault("k3", "Shao et al. 2024")}
)

ADAPTER_RATES: dict[str, StageDefault] = {
    "lora": StageDefault(10, "Schulman et al. 2025, LoRA Without Regret"),
    "adalora": StageDefault(10, "as lora"),
    "ia3": StageDefault(100, "Liu et al. 2022"),
    "prompt": StageDefault(100, "PEFT's examples"),
    "p_tuning": StageDefault(100, "PEFT's examples"),
    "prefix": StageDefault(100, "PEFT's examples"),
}
"""`finetuning_type` to how many times its rates are those of a whole model."""


def stage_default(default: Any, metadata: Mapping[str, Any], stage: str, finetuning_type: str) -> Any:
    """The default of a key in a stage.

    Args:
        default: where the key does not depend on the stage, or has nothing for this one.
        metadata: of the key's field (`espalier.config.option.option`).
        stage: its name.
        finetuning_type: of the run; only rates depend on it.

    >>> metadata = {"by_stage": LEARNING_RATE}
    >>> [stage_default(5e-5, metadata, stage, "full") for stage in ("sft", "ppo", "else")]
    [2e-05, 3e-06, 5e-05]
    >>> stage_default(5e-5, metadata, "sft", "lora")
    0.0002
    """
    by_stage: ByStage | None = metadata.get("by_stage")
    if by_stage is None or stage not in by_stage.stages:
        return default
    value = by_stage.stages[stage].value
    if not by_stage.is_rate:
        return value
    factor = ADAPTER_RATES[finetuning_type].value if finetuning_type in ADAPTER_RATES else 1
    return float(f"{value * factor:.6g}")  # 2e-4, not 0.00019999999999999998


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{value:g}"


def default_sentence(metadata: Mapping[str, Any], stages: list[str]) -> str:
    """``sft 2e-05 (TRL), …`` for those of `stages` that have a default of their own; empty where none has."""
    by_stage: ByStage = metadata.get("by_stage", ByStage(None, {}))
    words = [
        f"{stage} {_shown(one.value)} ({one.source})"
        for stage, one in by_stage.stages.items()
        if stage in stages
    ]
    if not words:
        return ""
    if by_stage.is_rate:
        rates = ", ".join(f"{kind} {one.value} ({one.source})" for kind, one in ADAPTER_RATES.items())
        words.append(f"with adapters so many times that: {rates}")
    return "; ".join(words)
