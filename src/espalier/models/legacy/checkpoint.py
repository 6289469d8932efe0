"""An old checkpoint folder as a model; every tensor is accounted for."""

# PreTrainedModel.eval has no type.
# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from espalier.disk.reading import read_json
from espalier.errors import UserError
from espalier.models.legacy import reward
from espalier.models.legacy.conversion import Conversion
from espalier.models.legacy.families import families, family_of
from espalier.models.legacy.weights import read_tensors


def config_of(folder: Path) -> dict[str, Any] | None:
    """The folder's config.json where it is one of an old family, else None.

    A .pth file, or a folder with one and without config.json, is taken for RWKV's own format.
    """
    if folder.suffix == ".pth" and folder.is_file():
        return _without_config()
    file = folder / "config.json"
    if not file.is_file():
        return _without_config() if [*folder.glob("*.pth")] else None
    config = read_json(file)
    return config if isinstance(config, dict) and family_of(config) is not None else None


def _without_config() -> dict[str, Any]:
    """What stands for the config.json of a bare .pth file."""
    return {"model_type": next(family.model_types[0] for family in families() if family.sizes)}


def fetched(name: str, *, allow_pickle: bool = False, weights: bool = True) -> Path | None:
    """An old checkpoint's folder from the hub, without the code that lies in it; None for anything else.

    Args:
        name: a hub id, or a path (then None).
        allow_pickle: whether .bin files are fetched too.
        weights: False fetches the configuration and the tokenizer alone.
    """
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return None
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
        if family_of(config) is None:
            return None
        kinds = ["*.json", "*.model", "*.tiktoken", "*.txt"]
        kinds += ["*.safetensors"] * weights + ["*.bin"] * (weights and allow_pickle)
        return Path(snapshot_download(name, allow_patterns=kinds))
    except (OSError, ValueError):  # whoever asks the hub next says what is wrong
        return None


def load_legacy(
    folder: Path,
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype | None,
    allow_pickle: bool,
    prepare: Callable[[Any], None] | None = None,
) -> nn.Module:
    """The model of an old checkpoint folder.

    Args:
        folder: with config.json and the weights under their original names.
        config: from `config_of`.
        dtype: of the parameters; None keeps the file's.
        allow_pickle: whether .bin files may be read, through torch's safe loader.
        prepare: changes the new configuration before the model is built.

    Raises:
        UserError: an option that cannot be converted, or tensors that are missing, left over or misshapen.
    """
    family = family_of(config)
    assert family is not None
    if family.sizes is not None:
        config = family.sizes(folder, allow_pickle=allow_pickle)
    conversion = family.convert(config)
    if prepare is not None:
        prepare(conversion.config)
    wrapped = reward.is_wrapped(folder, allow_pickle=allow_pickle)
    if wrapped and family.name == "glm":
        raise UserError(
            f"{folder}: the head of a GLM's reward model reads hidden states before the last normalisation, and here it "
            "would read those behind it. Train it anew with stage: reward."
        )
    if wrapped:
        model = unwrapped(folder, conversion, dtype=dtype, allow_pickle=allow_pickle)
    else:
        model = assembled(
            conversion,
            _placed(read_tensors(folder, allow_pickle=allow_pickle), conversion),
            str(folder),
            dtype,
        )
    model.name_or_path = model.config.name_or_path = str(folder)  # an adapter names its base by it
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(str(folder))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(generation, name) is not None:
                setattr(model.generation_config, name, getattr(generation, name))
    return model


def unwrapped(
    folder: Path, conversion: Conversion, *, dtype: torch.dtype | None, allow_pickle: bool
) -> PreTrainedModel:
    """The language model of a reward model that was saved with a wrapper around it (`legacy.reward`).

    Raises:
        UserError: as `assembled`.
    """
    kind: Any = conversion.model
    tensors = reward.unwrapped(folder, kind.base_model_prefix, allow_pickle=allow_pickle)
    state = _placed(tensors, conversion)
    reward.with_head(conversion, state)
    return assembled(conversion, state, str(folder), dtype)


def _placed(tensors: Iterable[tuple[str, Tensor]], conversion: Conversion) -> dict[str, Tensor]:
    return {new: value for name, tensor in tensors for new, value in conversion.place(name, tensor)}


def assembled(
    conversion: Conversion, state: dict[str, Tensor], where: str, dtype: torch.dtype | None
) -> PreTrainedModel:
    """The model with exactly these tensors in it; each is there and used, or it is the user's error."""
    model_class: Any = conversion.model
    _settle_tying(conversion.config, model_class._tied_weights_keys or {}, state)
    if dtype is None:
        dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    with torch.device("meta"):
        skeleton = model_class(conversion.config)
    tied = skeleton.all_tied_weights_keys if conversion.config.tie_word_embeddings else {}
    expected = {name: tuple(t.shape) for name, t in skeleton.state_dict().items() if name not in tied}
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    for problem, names in (
        ("lacks", sorted(set(expected) - set(shapes))),
        ("has, and the architecture has not,", sorted(set(shapes) - set(expected))),
        ("has in another shape", sorted(n for n in expected if n in shapes and expected[n] != shapes[n])),
    ):
        if names:
            shown = ", ".join(f"{n} {shapes.get(n, expected.get(n))}" for n in names[:4])
            raise UserError(
                f"{where}: the checkpoint {problem} {len(names)} tensors ({shown}). Its config.json "
                f"({conversion.config.model_type}) and its weights do not belong together, or a file is missing."
            )
    model: PreTrainedModel = model_class.from_pretrained(
        None, config=conversion.config, state_dict=state, dtype=dtype
    )
    model.eval()
    return model


def _settle_tying(config: Any, tied: Mapping[str, str], state: dict[str, Tensor]) -> None:
    """A tied head is stored twice; where the two differ after all, both are kept and nothing is tied."""
    if not config.tie_word_embeddings:
        return
    for head, embedding in tied.items():
        if head not in state:
            continue
        if embedding in state and not torch.equal(state[head], state[embedding]):
            config.tie_word_embeddings = False
        else:
            state.setdefault(embedding, state[head])
            del state[head]
