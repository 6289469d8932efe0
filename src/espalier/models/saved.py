"""Writing a model as a plain folder, its scalar head included, and reading that head again.

A reward model is saved as ``…ForSequenceClassification`` with one label where transformers has that class,
so that others can load it; else the head lies beside the weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from espalier.models.adapters.adapter import is_adapted, save_adapter
from espalier.models.endings import save_ends
from espalier.models.forward import TreeModel
from espalier.models.heads import ScalarHead
from espalier.models.load_adapted import vocabulary_of
from espalier.models.quantise.turn import is_quantised

HEAD_FILE = "scalar_head.safetensors"
_HEAD_NAMES = ("score.weight", "scalar_head.weight")


def save_model(
    folder: Path,
    model: TreeModel,
    tokenizer: Any,
    whole: dict[str, Tensor] | None = None,
    ends: Sequence[int] = (),
) -> None:
    """Write config, weights, tokenizer and head into an existing folder.

    Args:
        folder: to write into.
        model: what to save; an adapter is saved as PEFT does.
        tokenizer: saved beside it; None leaves it out.
        ends: tokens that its answers were trained to end with (`endings.save_ends`).
        whole: trained tensors by their names in `model`, where the model's own are sharded or not the masters.
    """
    lm: Any = model.lm
    state = {name: tensor.detach() for name, tensor in lm.state_dict().items()}
    for name, tensor in (whole or {}).items():
        if name.startswith("lm."):
            state[name.removeprefix("lm.")] = tensor
    head = None if model.scalar_head is None else model.scalar_head.weight.detach()
    if whole and "scalar_head.weight" in whole:
        head = whole["scalar_head.weight"]
    attention = lm.config._attn_implementation
    lm.config._attn_implementation = "sdpa"  # ours means nothing to others
    try:
        if head is not None and not (is_adapted(lm) or is_quantised(lm)) and _classifier(lm) is not None:
            _save_classifier(folder, lm, state, head)
        else:
            if is_adapted(lm):
                save_adapter(lm, folder, state, embeddings=_has_grown(lm))
            else:
                lm.save_pretrained(str(folder), state_dict=state, safe_serialization=True)
            if head is not None:
                save_file({"scalar_head.weight": head.cpu().contiguous()}, folder / HEAD_FILE)
    finally:
        lm.config._attn_implementation = attention
    if head is None:
        save_ends(lm, folder, ends)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))


def _has_grown(lm: Any) -> bool:
    """Whether an adapted model has more embeddings than the base that its folder will name."""
    base = lm.active_peft_config.base_model_name_or_path
    known = vocabulary_of(base) if base else None
    return known is not None and lm.get_input_embeddings().weight.shape[0] != known


def read_scalar_head(name: str) -> ScalarHead | None:
    """The head of a reward model's folder; None where there is none."""
    folder = Path(name)
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        with safe_open(file, framework="pt") as held:
            for key in _HEAD_NAMES:
                if key in held.keys():  # noqa: SIM118
                    weight = held.get_tensor(key).float()
                    if weight.shape[0] != 1:
                        return None
                    head = ScalarHead(weight.shape[1])
                    head.weight = nn.Parameter(weight)
                    return head
    return None


def _classifier(lm: Any) -> type | None:
    if lm.config.is_encoder_decoder:
        return None  # transformers' reads another token and has another head
    classes: Any = AutoModelForSequenceClassification._model_mapping
    kind: type | None = classes.get(type(lm.config), None)
    return kind


def _save_classifier(folder: Path, lm: Any, state: dict[str, Tensor], head: Tensor) -> None:
    """The backbone and one score, in the names of transformers' sequence classifier."""
    backbone = lm.base_model_prefix + "."
    kept = {name: t.cpu().contiguous() for name, t in state.items() if name.startswith(backbone)}
    kept["score.weight"] = head.to(next(iter(kept.values())).dtype).cpu().contiguous()
    save_file({name: t.clone() for name, t in kept.items()}, folder / "model.safetensors", {"format": "pt"})
    config = lm.config.to_dict()
    classifier = _classifier(lm)
    assert classifier is not None
    config.update(
        architectures=[classifier.__name__], num_labels=1, id2label={"0": "score"}, label2id={"score": 0}
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", "utf-8")
