"""Longer contexts: scaled rotary positions and flatter ALiBi slopes, set in a configuration before the model is built.

Rotary (`rope_scaling`): linear interpolation (Chen et al. 2023), dynamic NTK (bloc97, emozilla 2023), YaRN (Peng et al.
2023), and the bands of Llama 3.1. ALiBi: `linear` divides every slope (Al-Khateeb et al. 2023), `ntk_alibi` leaves the
steepest head as it is, divides the flattest by the factor, and those between by powers of it.

The setting is part of the saved configuration: ``rope_parameters`` in transformers' form, ``alibi_scaling`` in ours.
What has to be done to the built model is in `rope_modules`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from espalier.errors import Notice, UserError
from espalier.models.positions.own import OwnPositions, learned

ROTARY = ("linear", "dynamic", "yarn", "llama3")
ALIBI = ("linear", "ntk_alibi")
TABLES = ("codegen", "gptj")
"""Architectures whose layers hold a table of sines, made from no setting at all."""

UNSCALABLE = {
    "gpt2": learned("gpt2"),
    "opt": learned("opt"),
    "rwkv": "rwkv has no positions, which no scaling makes longer. Remove it.",
}
"""Architectures of transformers that no scaling makes longer, and why."""
EXTRA = {
    "linear": (),
    "dynamic": (),
    "ntk_alibi": (),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}
"""Further keys of a mapping, by its rope_type."""


class ServingDiffers(Notice):
    """A model is about to be used with other positions than it was trained with."""


def has_alibi(config: Any) -> bool:
    """Whether a model of this configuration knows distances by ALiBi's slopes."""
    if isinstance(config, OwnPositions):
        return config.has_slopes
    kind = config.model_type
    return kind in ("bloom", "mpt") or (kind == "falcon" and bool(config.alibi))


def set_scaling(config: Any, wanted: str | Mapping[str, Any], *, length: int | None = None) -> None:
    """Write a scaling into a model's configuration, before the model is built.

    Args:
        config: of transformers, or one of ours.
        wanted: a name of `ROTARY` or `ALIBI`, one with its factor (``yarn:4``), or a mapping with rope_type, factor and
            what else the type knows.
        length: what a text may come to; a name without a factor takes the least whole one that reaches it.

    Raises:
        UserError: this architecture cannot be scaled in this way, a key that is unknown, or no factor at all.
    """
    text = config.get_text_config()
    kind = text.model_type
    own = text if isinstance(text, OwnPositions) else None
    unscalable = UNSCALABLE.get(kind) if own is None else own.unscalable
    if unscalable:
        raise UserError(f"rope_scaling: {unscalable}")
    settings, original = _read(wanted, text, length)
    name = settings["rope_type"]
    known = ALIBI if has_alibi(text) else ROTARY
    if name not in known:
        by = "by ALiBi's slopes" if has_alibi(text) else "by rotary positions"
        raise UserError(
            f"rope_scaling: {name} is not for {kind}, which knows distances {by}. Wanted {', '.join(known)}."
        )
    had = scaling_of(text)
    if had is not None and not _same(had, settings):
        warnings.warn(
            f"this model was saved with the scaling {had}; it is now loaded with {settings}",
            ServingDiffers,
            stacklevel=3,
        )
    if has_alibi(text):
        if kind == "falcon":
            raise UserError(
                "rope_scaling: transformers makes Falcon's ALiBi slopes where nothing can reach them. Remove it."
            )
        text.alibi_scaling = {**settings, "original_max_position_embeddings": original}
    elif own is not None and own.grows_by_itself:
        if name != "dynamic":
            raise UserError(
                f"rope_scaling: {name} is not for {own.grows_by_itself}. Set rope_scaling: dynamic to turn that on, "
                "or remove it."
            )
        own.grow()
    elif kind in TABLES:
        if name == "dynamic":
            raise UserError(f"rope_scaling: dynamic is not for {kind}, whose tables are made once. Use yarn.")
        text.rope_table = {**settings, "original_max_position_embeddings": original}
    else:
        _write_rotary(text, settings, original)
    if name != "dynamic":  # whose formula is about the original length, in transformers and here
        _lengthen(text, math.ceil(original * settings["factor"]))


def _read(wanted: str | Mapping[str, Any], config: Any, length: int | None) -> tuple[dict[str, Any], int]:
    """The whole setting, and the length that it is a scaling of."""
    if isinstance(wanted, str):
        name, _, number = wanted.partition(":")
        given: dict[str, Any] = {"rope_type": name, **({"factor": _number(number)} if number else {})}
    else:
        given = dict(wanted)
    name = given.pop("rope_type", None) or given.pop("type", None)
    given.pop("type", None)
    if name == "longrope":
        raise UserError(
            "rope_scaling: longrope's factors are found by a search for one model, and come with its own "
            "config.json. Remove it, or use yarn."
        )
    if name not in EXTRA:
        raise UserError(f"rope_scaling: {name} is not known. Wanted one of {', '.join(EXTRA)}.")
    original = int(given.pop("original_max_position_embeddings", None) or original_length(config))
    factor = given.pop("factor", None)
    if factor is None and length is not None and length > original:
        factor = float(math.ceil(length / original))
    if factor is None:
        fits = f"cutoff_len {length} fits into {original} positions" if length else "nothing says how long"
        raise UserError(f"rope_scaling: {name} has no factor, and {fits}. Give one: {name}:4, or a mapping.")
    if not isinstance(factor, int | float) or factor < 1:
        raise UserError(f"rope_scaling: factor {factor}; wanted a number of at least 1.")
    unknown = [key for key in given if key not in EXTRA[name]]
    if unknown:
        raise UserError(
            f"rope_scaling: {', '.join(unknown)} is no setting of {name}. It knows factor, "
            f"original_max_position_embeddings{''.join(', ' + key for key in EXTRA[name])}."
        )
    made = {"rope_type": name, "factor": float(factor), **given}
    if name in ("yarn", "llama3"):
        made["original_max_position_embeddings"] = original
    if name == "llama3":
        made = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, **made}
    return made, original


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _write_rotary(config: Any, settings: dict[str, Any], original: int) -> None:
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise UserError(f"rope_scaling: {config.model_type} has no rotary positions. Remove it.")
    nested = _nested(parameters)
    kept = ("rope_theta", "partial_rotary_factor", "mrope_section")
    if not nested:
        base = {key: parameters[key] for key in kept if key in parameters}
        config.rope_parameters = {**base, **settings}
    else:  # windowed layers see no further than before
        if settings["rope_type"] == "dynamic":
            raise UserError(
                f"rope_scaling: dynamic is not for {config.model_type}, whose layers differ in their positions. Use yarn."
            )
        target = "full_attention" if "full_attention" in parameters else next(iter(parameters))
        base = {key: parameters[target][key] for key in kept if key in parameters[target]}
        config.rope_parameters = {**parameters, target: {**base, **settings}}
    if "original_max_position_embeddings" in config.to_dict() and config.model_type.startswith("phi3"):
        config.original_max_position_embeddings = original


def _nested(parameters: Mapping[str, Any]) -> bool:
    """Whether positions are set for each type of layer by itself."""
    return bool(parameters) and all(isinstance(v, Mapping) or v is None for v in parameters.values())


def _lengthen(config: Any, length: int) -> None:
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if key in config.to_dict():
            setattr(config, key, length)


def scaling_of(config: Any) -> dict[str, Any] | None:
    """The scaling that a configuration carries, as `set_scaling` takes it; None for none."""
    text = config.get_text_config()
    settings = text.to_dict()
    for key in ("alibi_scaling", "rope_table"):
        if settings.get(key):
            return {k: v for k, v in settings[key].items() if _told(k, settings[key])}
    parameters = settings.get("rope_parameters") or {}
    if _nested(parameters):
        parameters = parameters.get("full_attention") or {}
    if parameters.get("rope_type", "default") in ("default", "proportional", "axial"):
        return None
    return {k: v for k, v in parameters.items() if _told(k, parameters) and v is not None}


def _told(key: str, parameters: Mapping[str, Any]) -> bool:
    name = parameters["rope_type"]
    wanted = ("rope_type", "factor", *EXTRA.get(name, ("short_factor", "long_factor")))
    return key in wanted or (key == "original_max_position_embeddings" and name in ("yarn", "llama3"))


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return {k: v for k, v in a.items() if v is not None} == {k: v for k, v in b.items() if v is not None}


def original_length(config: Any) -> int:
    """The length that the model was trained at, before any scaling; 2048 where nothing says it."""
    text = config.get_text_config()
    settings = text.to_dict()
    for key in ("alibi_scaling", "rope_table"):
        if settings.get(key):
            return int(settings[key]["original_max_position_embeddings"])
    parameters = settings.get("rope_parameters") or {}
    if _nested(parameters):
        parameters = parameters.get("full_attention") or {}
    if parameters.get("original_max_position_embeddings"):
        return int(parameters["original_max_position_embeddings"])
    most = next(
        (
            settings[key]
            for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
            if settings.get(key)
        ),
        2048,
    )
    if parameters.get("rope_type") == "linear":
        return round(int(most) / float(parameters["factor"]))
    return int(most)


def stated_length(config: Any) -> int | None:
    """The most positions that a model of this configuration is for, its scaling included; None where it says none."""
    settings = config.get_text_config().to_dict()
    keys = ("max_position_embeddings", "n_positions", "max_seq_len")
    most = next((settings[key] for key in keys if isinstance(settings.get(key), int)), None)
    scaling = scaling_of(config)
    if most is not None and scaling is not None and scaling["rope_type"] == "dynamic":
        return int(most * scaling["factor"])
    return most


def longest(config: Any) -> int:
    """The same, and 2048 where nothing is said."""
    return stated_length(config) or 2048


def warn_if_other(config: Any, trained: Mapping[str, Any] | None, where: str) -> None:
    """Say so where an adapter was trained with another scaling than the model it is put on."""
    now = scaling_of(config)
    if (now is None) != (trained is None) or (
        now is not None and trained is not None and not _same(now, trained)
    ):
        warnings.warn(
            f"{where} was trained with the scaling {trained}, and the model under it has {now}",
            ServingDiffers,
            stacklevel=3,
        )
