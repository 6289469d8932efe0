"""What `espalier inspect CONFIG` says is trained is what the run trains, for each kind of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier import config
from espalier.commands.inspect.trained import trained_parameters
from espalier.config.options import ModelOptions
from espalier.models.adapters.counts import Count, counted
from espalier.models.adapters.freezing import freeze_lowest
from espalier.models.adapters.kinds import add_lora
from espalier.models.legacy.families import conversion_of
from espalier.runs.catalogue import STAGES
from espalier.runs.pipeline import ALL_CLASSES
from espalier.stages.setup import Setup
from tests.stages.conftest import TINY, options, options_of, run, world  # noqa: F401
from tests.test_cli import call

Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "millions"), [(24, 1024, 16, 131), (32, 2560, 32, 815)]
)
def test_the_predecessors_figures(layers: int, hidden: int, heads: int, millions: int) -> None:
    """70 % of PanGu-350M and of PanGu-2.6B frozen, as published: the highest int(0.3 L) blocks and all embeddings."""
    old = {"model_type": "gpt_pangu", "vocab_size": 40000, "hidden_size": hidden, "num_layers": layers}
    made = conversion_of(old | {"num_heads": heads, "max_position_embeddings": 1024})
    kind: Any = made.model
    with torch.device("meta"):
        lm = kind(made.config)
    assert freeze_lowest(lm, 0.7, embeddings=False) == layers - int(0.3 * layers)
    parts = counted(lm)
    trained = sum(parts.values(), Count()).trained
    assert trained // 10**6 == millions
    block = 12 * hidden**2 + 13 * hidden
    assert parts["blocks"] == Count(int(0.3 * layers) * block, layers * block)
    assert parts["embeddings"] == Count((40000 + 2 * 1024) * hidden, (40000 + 2 * 1024) * hidden)
    assert "head" not in parts, "it is tied to the embeddings"


def test_the_predecessors_figure_of_lora_a_rank() -> None:
    """Of PanGu-2.6B, embeddings included, as published: 1.517 million parameters a rank."""
    old = {"model_type": "gpt_pangu", "vocab_size": 40000, "hidden_size": 2560, "num_layers": 32}
    made = conversion_of(old | {"num_heads": 32, "max_position_embeddings": 1024})
    kind: Any = made.model
    for rank in (1, 8):
        with torch.device("meta"):
            lm = add_lora(
                kind(made.config), rank=rank, alpha=None, dropout=0.0, target=["all", "wte"], bias="none"
            )
        parts = counted(lm)
        assert parts["adapters"].trained == sum(parts.values(), Count()).trained
        assert round(parts["adapters"].trained / rank / 1000) == 1517


KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "a ratio": {"finetuning_type": "freeze", "freeze_ratio": 0.5},
    "a ratio and embeddings": {"freeze_ratio": 0.5, "freeze_embeddings": False},
    "blocks": {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "freeze_extra_modules": ["norm"]},
    "lora": {"finetuning_type": "lora", "lora_rank": 3},
    "lora of the vocabulary": {"finetuning_type": "lora", "lora_target": ["all", "embed_tokens", "lm_head"]},
    "pissa": {"finetuning_type": "lora", "pissa_init": True},
    "lora and more": {"finetuning_type": "lora", "use_dora": True, "modules_to_save": ["lm_head"]},
    "adalora": {"finetuning_type": "adalora", "adalora_tinit": 1, "adalora_tfinal": 1},
    "ia3": {"finetuning_type": "ia3"},
    "prompt": {"finetuning_type": "prompt", "prompt_init_text": "Say it."},
    "p_tuning": {"finetuning_type": "p_tuning"},
    "prefix": {"finetuning_type": "prefix"},
    "lora in 8 bits": {"finetuning_type": "lora", "quantization_bit": 8, "quantization_method": "cpm"},
}


def counts(stage: str, made: dict[str, Any]) -> tuple[dict[str, Count], Setup]:
    built = config.build(config.RawConfig(made), ALL_CLASSES[stage], all_classes=ALL_CLASSES)
    setup = Setup(
        built, reads=STAGES[stage].reads, rank=0, world=1, device=torch.device("cpu"), say=lambda line: None
    )
    return dict(trained_parameters(STAGES[stage], setup, built, built[ModelOptions])), setup


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_it_is_what_the_run_trains(kind: str, stage: str, world: Path, tmp_path: Path) -> None:  # noqa: F811
    made = options_of(world, tmp_path, stage) | KINDS[kind]
    said, setup = counts(stage, made)
    model = setup.load_policy(scalar_head=stage == "reward")
    if stage == "reward":
        model = model.without_lm_head()
    real = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(part.trained for part in said.values()) == real > 0
    if kind == "full":
        whole = sum(p.numel() for p in model.parameters())
        assert sum(part.total for part in said.values()) == whole


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_new_model_with_a_head_of_its_own(stage: str, world: Path, tmp_path: Path) -> None:  # noqa: F811
    made = options_of(world, tmp_path, stage, model_config=TINY | {"tie_word_embeddings": False})
    del made["model_name_or_path"]
    said, setup = counts(stage, made | {"tokenizer": str(world / "base")})
    model = setup.load_policy(scalar_head=stage == "reward")
    if stage == "reward":
        model = model.without_lm_head()
    table = len(setup.tokenizer) * 32
    assert said["head"] == (Count(table, table) if stage == "sft" else Count(32, table + 32))
    assert sum(part.trained for part in said.values()) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_a_pipeline_and_an_adapter_that_is_trained_on(
    options: Make,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = options("sft", max_steps=1, finetuning_type="lora", lora_rank=2)
    run(first)
    on = options("sft", finetuning_type="lora", output_dir=str(tmp_path / "again"))
    on["adapter_name_or_path"] = [str(tmp_path / "run" / "sft" / "model")]
    keys = ("dataset", "eval_dataset", "stage")
    shared = {key: value for key, value in on.items() if key not in keys}
    fresh = {key: options("reward")[key] for key in keys}
    stages = [
        {"name": "a"} | {key: on[key] for key in keys},
        {"name": "b", "model_name_or_path": "run:a", "adapter_name_or_path": [], "lora_rank": 5} | fresh,
    ]
    file = tmp_path / "pipeline.yaml"
    file.write_text(json.dumps(shared | {"stages": stages}), "utf-8")
    capsys.readouterr()
    assert call("inspect", str(file), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    # rows and columns of the seven linear layers of a block: q, k, v, o, gate, up, down
    sides = 64 + 48 + 48 + 64 + 96 + 96 + 96
    assert shown["a"]["trained_parameters"]["adapters"] == {"trained": 2 * 2 * sides, "all": 2 * 2 * sides}
    assert shown["b"]["trained_parameters"]["adapters"]["trained"] == 5 * 2 * sides
    assert shown["b"]["trained_parameters"]["head"]["trained"] == 32
    assert call("inspect", str(file)) == 0
    assert "# a: 2,048 of " in capsys.readouterr().out.replace("\n", " ")
