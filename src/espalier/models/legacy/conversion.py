"""What a family's module hands back: the new configuration, the class, and where each old tensor goes.

Tensors are converted one at a time, so that nothing is held twice. What these modules read is the
`config.json` of the original code, where a key that equals transformers' own default (4.33) was left out:
an absent ``tie_word_embeddings`` means true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from espalier.errors import UserError

Named = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class Conversion:
    """How one checkpoint becomes a model of today.

    Attributes:
        config: of the new model.
        model: its class.
        place: an old name and tensor to the new names and tensors; nothing for what is not needed.
    """

    config: Any
    model: type
    place: Callable[[str, Tensor], Named]


def token_ids(old: Mapping[str, Any], **defaults: int | None) -> dict[str, Any]:
    """The ids of special tokens and the tying of embeddings, as every configuration of transformers takes them.

    Args:
        old: the original config.json.
        defaults: of the original configuration class, for ids that it left out.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: old.get(name, defaults.get(name)) for name in names}
    return {**ids, "tie_word_embeddings": bool(old.get("tie_word_embeddings", True))}


def taken(old: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of the keys that the old configuration has, under the same names."""
    return {name: old[name] for name in names if old.get(name) is not None}


def needed(old: Mapping[str, Any], *names: str) -> Any:
    """The value of the first of these keys that is there.

    Raises:
        UserError: none is.
    """
    for name in names:
        if old.get(name) is not None:
            return old[name]
    raise UserError(
        f"config.json: no {' or '.join(names)} (model_type {old.get('model_type')!r}). Wanted the original "
        "configuration file of the checkpoint; copy it beside the weights."
    )


def refuse(old: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Stop at options that no released checkpoint uses and that this conversion would get wrong.

    Args:
        old: the original config.json.
        wanted: the value that each option must have where it is given.

    Raises:
        UserError: naming the option, what was found, and what works.
    """
    for name, value in wanted.items():
        if name in old and old[name] is not None and old[name] != value:
            raise UserError(
                f"config.json: {name} is {old[name]!r}, and only {value!r} can be converted. "
                "Merge or dequantise the checkpoint with its own code first."
            )


def thirds(tensor: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """Stacked rows (of a weight or a bias) cut into parts, each in memory of its own."""
    assert tensor.shape[0] == sum(sizes), f"{tuple(tensor.shape)} is not {' + '.join(map(str, sizes))} rows"
    return tuple(part.contiguous() for part in torch.split(tensor, list(sizes)))
