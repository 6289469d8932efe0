"""Models and tokenizers from folders, hub ids, or from nothing but a configuration.

This is the one door to the Hugging Face model classes. No pickle is read unless it is asked for.
Weights are float32 (the optimiser's master copy) unless asked otherwise; precision is the engine's affair.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
)

from espalier.disk.reading import read_json
from espalier.errors import UserError
from espalier.models.adapters.virtual import virtual_tokens
from espalier.models.encoder_decoder import takes_rows
from espalier.models.hub_reach import check_reachable
from espalier.models.legacy import checkpoint
from espalier.models.legacy.families import register
from espalier.models.legacy.reward import conversion_of_wrapped, is_wrapped
from espalier.models.legacy.weights import not_safe, refusal
from espalier.models.new_config import refusal as refusal_of_sizes
from espalier.models.new_config import settled, try_out
from espalier.models.positions.rope import longest, set_scaling
from espalier.models.positions.rope_modules import put_in_place
from espalier.models.quantise import cpm_transformers as cpm_transformers  # transformers learns of it by this
from espalier.models.quantise.methods import Quantisation, check_readable, entry_of, settings
from espalier.models.quantise.turn import check_quantised, never_packed, quantised
from espalier.models.quiet import first_line, quiet
from espalier.models.remote_code import came_with_code, forget_code, wants_code
from espalier.models.run_folder import check_there
from espalier.models.tokenizers.load_tokenizer import end_tokens as end_tokens
from espalier.models.tokenizers.load_tokenizer import fit_vocabulary as fit_vocabulary
from espalier.models.tokenizers.load_tokenizer import for_model as for_model
from espalier.models.tokenizers.load_tokenizer import has_tokenizer as has_tokenizer
from espalier.models.tokenizers.load_tokenizer import load_tokenizer as load_tokenizer
from espalier.models.tokenizers.new_tokenizer import CHATML as CHATML
from espalier.models.tokenizers.new_tokenizer import SPECIAL_TOKENS as SPECIAL_TOKENS
from espalier.models.tokenizers.new_tokenizer import train_tokenizer as train_tokenizer

Scaling = str | Mapping[str, Any]
"""A name, or a mapping with rope_type and factor."""


def load_lm(
    name: str,
    *,
    dtype: torch.dtype | None = torch.float32,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    rope_scaling: Scaling | None = None,
    length: int | None = None,
    quantisation: Quantisation | None = None,
) -> nn.Module:
    """A causal language model from a folder with safetensors, or from the hub when `name` is no path.

    Old Chinese checkpoints in their original layout are converted on the way (`espalier.models.legacy`).

    Args:
        name: a folder or a hub id.
        dtype: of the parameters; None keeps the file's.
        trust_remote_code: run Python code that comes with the model.
        allow_pickle: read .bin files, through torch's safe loader, where there are no safetensors.
        rope_scaling: for a longer context, see `rope.set_scaling`; None is what the folder says.
        length: of texts, for a scaling without a factor.
        quantisation: store the linear layers in few bits as they are read; a folder may also be quantised already.

    Raises:
        UserError: the folder is missing, has no config or no weights, or holds another kind of model.
    """
    _check_loadable(name, quantisation, allow_pickle=allow_pickle)
    quiet()
    name = str(checkpoint.fetched(name, allow_pickle=allow_pickle) or name)
    local = Path(name).exists()
    old = checkpoint.config_of(Path(name)) if local else None
    if old is not None:
        scale = None if rope_scaling is None else partial(set_scaling, wanted=rope_scaling, length=length)
        lm = checkpoint.load_legacy(Path(name), old, dtype=dtype, allow_pickle=allow_pickle, prepare=scale)
        return put_in_place(lm) if quantisation is None else quantised(lm, quantisation)
    register(Path(name))
    with _refusing(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, local_files_only=local)
        if rope_scaling is not None:
            set_scaling(config, rope_scaling, length=length)
        if local and is_wrapped(Path(name), allow_pickle=allow_pickle):
            lm = _unwrapped(name, config, dtype, allow_pickle)
            return lm if quantisation is None else quantised(lm, quantisation)
        if config.model_type == "rwkv":
            config.rescale_every = 0  # transformers halves weights in evaluation, and would save them so
        lm = _kind(config).from_pretrained(
            name,
            config=without_dropout(config),
            dtype="auto" if dtype is None else dtype,
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=trust_remote_code,
            local_files_only=local,
            **({} if quantisation is None else {"quantization_config": settings(quantisation)}),
        )
    if not came_with_code(lm):
        forget_code(lm.config)
    lm = put_in_place(takes_rows(lm) if config.is_encoder_decoder else lm)
    if quantisation is not None:
        check_quantised(lm, quantisation)
    return never_packed(lm)


def _unwrapped(name: str, config: Any, dtype: torch.dtype | None, allow_pickle: bool) -> nn.Module:
    """The language model in a reward model of another project (`legacy.reward`)."""
    conversion = conversion_of_wrapped(without_dropout(config))
    made = checkpoint.unwrapped(Path(name), conversion, dtype=dtype, allow_pickle=allow_pickle)
    made.name_or_path = made.config.name_or_path = name
    return put_in_place(made)


def _check_loadable(name: str, quantisation: Quantisation | None, *, allow_pickle: bool) -> None:
    check_folder(name, allow_pickle=allow_pickle)
    check_readable(name)
    if quantisation is not None and entry_of(name) is not None:
        raise UserError(f"{name}: is quantised already. Remove quantization_bit, or name the plain model.")


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """What goes wrong in reading a model, as one message about its folder or hub id."""
    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(not_safe(name, error)) from error
    except RuntimeError as error:  # a cut .bin; whatever else torch says is not about the file
        if "PytorchStreamReader" not in str(error):
            raise
        raise UserError(not_safe(name, error)) from error
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        if code := wants_code(error, Path(name)):
            raise UserError(code) from error
        raise UserError(
            f"{name}: cannot be loaded as a causal language model ({first_line(error)}). "
            "Give a folder with config.json and *.safetensors, or the id of such a model on the hub."
        ) from error


def new_lm(
    config: dict[str, Any],
    vocab_size: int,
    token_ids: dict[str, int | None],
    *,
    rope_scaling: Scaling | None = None,
    length: int | None = None,
    weights: bool = True,
) -> nn.Module:
    """A new model with random weights.

    Args:
        config: transformers' own configuration keys, ``model_type`` among them.
        vocab_size: of the tokenizer; wins over a ``vocab_size`` in the configuration that is smaller.
        token_ids: ``bos_token_id``, ``eos_token_id``, ``pad_token_id`` of the tokenizer.
        rope_scaling, length: as in `load_lm`.
        weights: False makes it without memory (torch's meta device), to be looked at.
    """
    quiet()
    settings = dict(config)
    kind = settings.pop("model_type", None)
    if kind is None:
        raise UserError(
            "model_config: no model_type. Name an architecture of transformers, such as model_type: qwen3."
        )
    settings = settled(str(kind), settings)
    settings["vocab_size"] = max(int(settings.get("vocab_size") or 0), vocab_size)
    try:
        made = AutoConfig.for_model(kind, **{**settings, **token_ids})
        if rope_scaling is not None:
            set_scaling(made, rope_scaling, length=length)
        with torch.device("cpu" if weights else "meta"):
            lm = _kind(made).from_config(without_dropout(made), dtype=torch.float32)
        if not weights:
            return lm  # type: ignore[no-any-return]
        try_out(lm)
        return put_in_place(takes_rows(lm) if made.is_encoder_decoder else lm)
    except UserError:
        raise
    except Exception as error:  # from a validator, a constructor or a layer of any architecture
        if kind not in CONFIG_MAPPING:
            raise UserError(f"model_config: {first_line(error)}") from error
        raise refusal_of_sizes(str(kind), config, error) from error


def _kind(config: Any) -> Any:
    """The family of classes that answers for this configuration; an encoder-decoder learns where to begin."""
    if not config.is_encoder_decoder:
        return AutoModelForCausalLM
    if config.to_dict().get("decoder_start_token_id") is None:
        config.decoder_start_token_id = config.pad_token_id  # as T5 has it, whose files may leave it out
    return AutoModelForSeq2SeqLM


def without_dropout(config: Any) -> Any:
    """The configuration with every dropout at 0: policy and reference must differ by their weights alone, and
    tree attention has none. LoRA's own dropout is another matter."""
    for key, value in config.to_dict().items():
        if isinstance(value, float) and any(name in key for name in ("dropout", "pdrop", "layerdrop")):
            setattr(config, key, 0.0)
    return config


def check_folder(name: str, *, allow_pickle: bool = False) -> None:
    """Whether a name that is a path is a model's or an adapter's folder with weights that may be read.

    Raises:
        UserError: it is not; what was found, what was wanted, what to do.
    """
    check_there(name)
    folder = Path(name)
    if not folder.exists():
        check_reachable(name)
        return
    if folder.is_file() and checkpoint.config_of(folder) is None:
        raise UserError(f"{name}: is a file. Wanted the folder that holds config.json and *.safetensors.")
    if (folder / "adapter_config.json").is_file():
        return
    if not (folder / "config.json").is_file() and checkpoint.config_of(folder) is None:
        names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise UserError(f"{name}: no config.json here (found {names}). Wanted a Hugging Face model folder.")
    if not any(folder.glob("*.safetensors")):
        pickles = [folder] if folder.is_file() else [*folder.glob("*.bin"), *folder.glob("*.pt*")]
        if pickles and allow_pickle:
            return
        cure = "Copy the weights here, or give `model_config:` for a new model."
        raise UserError(
            refusal(pickles[0])
            if pickles
            else f"{name}: a model folder without weights (no *.safetensors). {cure}"
        )


def read_config(value: dict[str, Any] | str) -> dict[str, Any]:
    """`model_config` as a mapping, from a mapping or the path of a JSON file."""
    if isinstance(value, dict):
        return value
    made = read_json(Path(value), "model_config")
    if not isinstance(made, dict):
        raise UserError(f"model_config: {value}: wanted a JSON object with model_type and sizes.")
    return made


def hidden_size(lm: nn.Module) -> int:
    config: Any = lm.config
    return int(config.get_text_config().hidden_size)


def checkpoint_activations(lm: nn.Module) -> None:
    """Keep the inputs of the blocks only, and compute the rest again in the backward (Chen et al. 2016)."""
    model: Any = lm
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Transformers makes the embeddings' output require gradients, which only reentrant checkpoints need; here
    # it would send the backward through every frozen block.
    model.disable_input_require_grads()


def context_length(lm: nn.Module) -> int:
    """The most positions that the model was made for, less its virtual tokens; 2048 where nothing is said."""
    virtual = virtual_tokens(lm)
    return longest(lm.config) - (0 if virtual is None else virtual.length)
