"""Writing a model as a plain folder, its scalar head included, and reading that head again.

A reward model is saved as ``…ForSequenceClassification`` with one label where transformers has that class,
so that others can load it; else the head lies beside the weights.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from espalier.models.adapters.adapter import is_adapted, save_adapter
from espalier.models.dtypes import StoredTypes
from espalier.models.endings import ends_of, save_ends
from espalier.models.forward import TreeModel
from espalier.models.heads import ScalarHead, whole_shape
from espalier.models.legacy.reward import head_of
from espalier.models.load_adapted import vocabulary_of
from espalier.models.quantise.turn import is_quantised

HEAD_FILE = "scalar_head.safetensors"
_HEAD_NAMES = ("score.weight", "scalar_head.weight")
_OFFSET = "scalar_head.offset"
_SCORE_AT = "espalier_score_at"
_MOMENTS = ("espalier_score_mean", "espalier_score_std")


def save_model(
    folder: Path,
    model: TreeModel,
    tokenizer: Any,
    whole: dict[str, Tensor] | None = None,
    ends: Sequence[int] = (),
    types: StoredTypes | None = None,
) -> None:
    """Write config, weights, tokenizer and head into an existing folder.

    Args:
        folder: to write into.
        model: what to save; an adapter is saved as PEFT does.
        tokenizer: saved beside it; None leaves it out.
        ends: tokens that its answers were trained to end with (`endings.save_ends`).
        whole: trained tensors by their names in `model`, where the model's own are sharded or not the masters.
        types: in which plain weights are written, rounded once; None: as they are. An adapter and a scalar head stay in
            the type that they have.
    """
    lm: Any = model.lm
    plain = not (is_adapted(lm) or is_quantised(lm))
    trained = {n.removeprefix("lm."): t for n, t in (whole or {}).items() if n.startswith("lm.")}
    state = _state_of(lm, trained, types if plain else None)
    head = None if model.scalar_head is None else model.scalar_head.weight.detach()
    if whole and "scalar_head.weight" in whole:
        head = whole["scalar_head.weight"]
    attention = lm.config._attn_implementation
    lm.config._attn_implementation = "sdpa"  # ours means nothing to others
    try:
        about = _about_head(model.scalar_head)
        offset = None if model.scalar_head is None else model.scalar_head.offset
        if head is not None and plain and offset is None and _classifier(lm) is not None:
            tokenizer, pad = padded_otherwise(lm, tokenizer, ends)
            _save_classifier(folder, lm, state, head, pad, about)
        else:
            if is_adapted(lm):
                save_adapter(lm, folder, state, embeddings=_has_grown(lm))
            else:
                lm.save_pretrained(str(folder), state_dict=state, safe_serialization=True)
            if head is not None:
                own = {"scalar_head.weight": head} | ({} if offset is None else {_OFFSET: offset})
                _write_head(folder / HEAD_FILE, {n: t.cpu().contiguous() for n, t in own.items()}, about)
        if plain and types is not None:
            _declare_type(folder, str(types))
    finally:
        lm.config._attn_implementation = attention
    if head is None:
        save_ends(lm, folder, ends)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))


def _about_head(head: ScalarHead | None) -> dict[str, str]:
    """What stands in the header of the file that holds the head."""
    about = {"format": "pt"}
    if head is not None and head.score_at is not None:
        about[_SCORE_AT] = head.score_at
    if head is not None and head.moments is not None:
        about |= dict(zip(_MOMENTS, map(repr, head.moments), strict=True))
    return about


def _write_head(file: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Equal models as equal files: safetensors writes its notes in an order of chance, so they are sorted afterwards."""
    save_file(tensors, file, about)
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same words in another order"
        stream.seek(8)
        stream.write(text.ljust(size))


def _state_of(lm: Any, trained: dict[str, Tensor], types: StoredTypes | None) -> dict[str, Tensor]:
    """All tensors by name, in their types; those that the model shares are one tensor here too, to be written once."""
    state = {name: tensor.detach() for name, tensor in lm.state_dict().items()} | trained
    if types is not None:
        state = {name: types.round(name, tensor) for name, tensor in state.items()}
    for name, source in getattr(lm, "all_tied_weights_keys", {}).items():
        if name in state and source in state:
            state[name] = state[source] = state[name if name in trained else source]
    return state


def _declare_type(folder: Path, name: str) -> None:
    """What transformers reads a folder as unless it is told otherwise; it has written the type in memory."""
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8"))
    inner = (value for value in config.values() if isinstance(value, dict) and "dtype" in value)
    for part in (config, *inner):
        part["dtype"] = name
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _has_grown(lm: Any) -> bool:
    """Whether an adapted model has more embeddings than the base that its folder will name."""
    base = lm.active_peft_config.base_model_name_or_path
    known = vocabulary_of(base) if base else None
    return known is not None and whole_shape(lm.get_input_embeddings().weight)[0] != known


def read_scalar_head(name: str, *, allow_pickle: bool = False) -> ScalarHead | None:
    """The head of a reward model's folder, of other projects too (`legacy.reward`); None where there is none.

    Raises:
        UserError: it is a pickle and may not be read, or it is no linear layer to one number.
    """
    folder = Path(name)
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        with safe_open(file, framework="pt") as tensors:
            for key in _HEAD_NAMES:
                if key in tensors.keys():  # noqa: SIM118
                    weight = tensors.get_tensor(key).float()
                    if weight.shape[0] != 1:
                        return None
                    offset = tensors.get_tensor(_OFFSET).float() if _OFFSET in tensors.keys() else None  # noqa: SIM118
                    return _made(weight, offset, tensors.metadata() or {})
    other = head_of(folder, allow_pickle=allow_pickle)
    return None if other is None else _made(*other, {})


def _made(weight: Tensor, offset: Tensor | None, about: Mapping[str, str]) -> ScalarHead:
    head = ScalarHead(weight.shape[1], about.get(_SCORE_AT), offset)
    head.weight = nn.Parameter(weight)
    if all(name in about for name in _MOMENTS):
        mean, deviation = (float(about[name]) for name in _MOMENTS)
        head.moments = (mean, deviation)
    return head


def _classifier(lm: Any) -> type | None:
    if lm.config.is_encoder_decoder:
        return None  # transformers' reads another token and has another head
    classes: Any = AutoModelForSequenceClassification._model_mapping
    kind: type | None = classes.get(type(lm.config), None)
    return kind


def padded_otherwise(lm: Any, tokenizer: Any, ends: Sequence[int]) -> tuple[Any, int]:
    """The tokenizer and the id for padding, which no answer ends with.

    transformers' classifiers read the score at the last token that is not the padding. Where that is also the end token,
    as base models have it, the score would be read one token too early.

    Args:
        tokenizer: a copy with another padding token is returned where its own ends answers; may be None.
        ends: tokens that answers end with, beside the model's and the tokenizer's own.
    """
    config = lm.config.get_text_config()
    own = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ending = {*ends, *ends_of(lm), *own, getattr(tokenizer, "eos_token_id", None)}
    special = (
        []
        if tokenizer is None
        else [tokenizer.pad_token_id, tokenizer.unk_token_id, *tokenizer.all_special_ids]
    )
    ids = [*special, config.pad_token_id, *reversed(range(config.vocab_size))]
    pad = next(i for i in ids if i is not None and i not in ending)
    if tokenizer is not None and tokenizer.pad_token_id != pad:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return tokenizer, int(pad)


def _save_classifier(
    folder: Path, lm: Any, state: dict[str, Tensor], head: Tensor, pad: int, about: dict[str, str]
) -> None:
    """The backbone and one score, in the names of transformers' sequence classifier."""
    backbone = lm.base_model_prefix + "."
    kept = {name: t.cpu().contiguous() for name, t in state.items() if name.startswith(backbone)}
    kept["score.weight"] = head.cpu().contiguous()
    _write_head(folder / "model.safetensors", {name: t.clone() for name, t in kept.items()}, about)
    config = lm.config.to_dict()
    classifier = _classifier(lm)
    assert classifier is not None
    config.update(
        architectures=[classifier.__name__],
        num_labels=1,
        id2label={"0": "score"},
        label2id={"score": 0},
        pad_token_id=pad,
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", "utf-8")
