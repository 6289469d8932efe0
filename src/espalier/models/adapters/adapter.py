"""Adapters through PEFT: saved ones, what they are, the model without them, and the model as it began.

`adapter_kinds` makes new ones, `rank_allocation` is AdaLoRA's, `virtual` the forward with virtual tokens; these
four files are the doors to PEFT.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, PeftType, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import nn

from espalier.errors import UserError
from espalier.models.adapters.kinds import add_adalora as add_adalora
from espalier.models.adapters.kinds import add_ia3 as add_ia3
from espalier.models.adapters.kinds import add_lora as add_lora
from espalier.models.adapters.kinds import add_p_tuning as add_p_tuning
from espalier.models.adapters.kinds import add_prefix as add_prefix
from espalier.models.adapters.kinds import add_prompt as add_prompt
from espalier.models.adapters.kinds import check_virtual as check_virtual
from espalier.models.adapters.kinds import ignore_known
from espalier.models.adapters.pissa import in_terms_of_base, say_plain
from espalier.models.adapters.targets import linear_layers as linear_layers
from espalier.models.adapters.targets import linear_names as linear_names
from espalier.models.adapters.tying import tie_again, untie
from espalier.models.dtypes import StoredTypes
from espalier.models.hub_revision import on_the_hub
from espalier.models.legacy.weights import not_safe
from espalier.models.positions.rope import scaling_of

KINDS = {
    PeftType.LORA: "lora",
    PeftType.ADALORA: "adalora",
    PeftType.IA3: "ia3",
    PeftType.PROMPT_TUNING: "prompt",
    PeftType.P_TUNING: "p_tuning",
    PeftType.PREFIX_TUNING: "prefix",
}
"""The names of `finetuning_type` for PEFT's."""

VIRTUAL = ("prompt", "p_tuning", "prefix")
"""Adapters of virtual tokens, which stand before the text and are no part of any weight."""

WEIGHTS = "adapter_model.safetensors"
BESIDE = "espalier.json"
"""What PEFT's settings have no place for: how the positions of the model below are scaled."""


def is_adapter(name: str) -> bool:
    """Whether a path is an adapter's folder."""
    return (Path(name) / "adapter_config.json").is_file()


def read_settings(folder: str) -> dict[str, Any]:
    """An adapter's own settings.

    Raises:
        UserError: no adapter there, or one that is none of ours.
    """
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"{folder}: no adapter_config.json here. Wanted a folder that PEFT has saved.")
    settings: dict[str, Any] = json.loads(file.read_text("utf-8"))
    if settings.get("peft_type") not in KINDS:
        raise UserError(
            f"{file}: an adapter of type {settings.get('peft_type')}; known are {', '.join(KINDS.values())}."
        )
    return settings


def is_virtual(folder: str) -> bool:
    """Whether a saved adapter is one of virtual tokens, which cannot be merged. Raises as `read_settings`."""
    return KINDS[read_settings(folder)["peft_type"]] in VIRTUAL


def kind_of(lm: nn.Module) -> str | None:
    """lora, adalora, ia3, prompt, p_tuning or prefix; None where the model has no adapter."""
    return KINDS[lm.active_peft_config.peft_type] if isinstance(lm, PeftModel) else None


def load_adapter(lm: nn.Module, folder: str, *, trainable: bool) -> nn.Module:
    """The model with a saved adapter on it.

    What a folder holds of p-tuning, or of a projected prefix, is what the small network had made and not the network:
    to train on, they become prompt tuning and a plain prefix with these values.

    Raises:
        UserError: the folder is no adapter's, or its weights do not fit the model.
    """
    settings = read_settings(folder)
    _grow(lm, Path(folder), settings)
    virtual = is_virtual(folder)
    try:
        with warnings.catch_warnings():
            # PEFT takes AdaLoRA's ranks for LoRA's patterns of ranks, and warns that they are none
            warnings.filterwarnings("ignore", message=".*rank_pattern keys did not match")
            ignore_known()
            made: Any = PeftModel.from_pretrained(lm, folder, is_trainable=trainable and not virtual)
    except pickle.UnpicklingError as error:
        raise UserError(not_safe(folder, error)) from error
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        first = str(error).strip().split("\n")[0][:300]
        raise UserError(
            f"{folder}: this adapter does not fit the model ({first}). It was made for "
            f"{settings.get('base_model_name_or_path')}."
        ) from error
    return trained_on(made) if trainable and virtual else made


@torch.no_grad()
def trained_on(lm: nn.Module) -> nn.Module:
    """A loaded model with virtual tokens, with these to be trained; see `load_adapter` for what they become."""
    assert isinstance(lm, PeftModel) and kind_of(lm) in VIRTUAL
    old: Any = lm.active_peft_config
    same = (
        "num_virtual_tokens",
        "token_dim",
        "num_attention_heads",
        "num_layers",
        "num_transformer_submodules",
    )
    kind = PrefixTuningConfig if old.peft_type == PeftType.PREFIX_TUNING else PromptTuningConfig
    encoder: Any = lm.prompt_encoder[lm.active_adapter]
    with warnings.catch_warnings():
        ignore_known()
        made: Any = get_peft_model(
            lm.base_model,
            kind(**{name: getattr(old, name) for name in same}, task_type="CAUSAL_LM"),
        )
    made.prompt_encoder[made.active_adapter].embedding.weight.copy_(encoder.embedding.weight)
    model: nn.Module = made
    return model


def _grow(lm: nn.Module, folder: Path, settings: dict[str, Any]) -> None:
    """As many embeddings as the adapter was trained with, where it brings its own."""
    inner = lm.get_input_embeddings()  # type: ignore[operator]
    name = next(n for n, module in lm.named_modules() if module is inner)
    # The rows of tokens that it has trained are all in it, whatever the others are.
    trained = settings.get("trainable_token_indices") or []
    trained = [i for rows in trained.values() for i in rows] if isinstance(trained, dict) else trained
    if max(trained, default=-1) >= inner.weight.shape[0]:
        lm.resize_token_embeddings(max(trained) + 1, mean_resizing=False)  # type: ignore[operator]
    if not (folder / WEIGHTS).is_file():
        return
    ends = tuple(f"{name}.{inside}weight" for inside in ("", "base_layer.", "token_adapter.base_layer."))
    with safe_open(folder / WEIGHTS, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            if key.endswith(ends):
                rows = tensors.get_slice(key).get_shape()[0]
                if rows != inner.weight.shape[0]:
                    lm.resize_token_embeddings(rows, mean_resizing=False)  # type: ignore[operator]


def is_adapted(lm: nn.Module) -> bool:
    return isinstance(lm, PeftModel)


def can_merge(lm: nn.Module) -> bool:
    """Whether the adapter (if there is one) can become part of the weights: virtual tokens cannot."""
    return not isinstance(lm, PeftModel) or kind_of(lm) not in VIRTUAL


def merged(lm: nn.Module) -> nn.Module:
    """The plain model with its adapter added to the weights; tied embeddings come apart where it changes one side.

    Raises:
        UserError: an adapter of virtual tokens.
    """
    if not isinstance(lm, PeftModel):
        return lm
    if not can_merge(lm):
        raise UserError(
            f"an adapter of kind {kind_of(lm)} cannot be merged: virtual tokens stand before the text and are no part "
            "of a weight. Use the adapter's folder as it is; every command takes it as a model."
        )
    settings: Any = lm.active_peft_config
    # An adapter that was told to keep them tied changes both, and PEFT merges both.
    untied = not vars(settings).get("ensure_weight_tying") and untie(lm)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lready (following adapters were )?merged")
        _merge_narrow(lm)
        plain: nn.Module = lm.merge_and_unload()
    if untied:
        tie_again(plain)
    return plain


def _merge_narrow(lm: nn.Module) -> None:
    """Merge the layers whose weights have 16 bits, one at a time in float32, rounded once: what a model that is float32 as
    a whole would be rounded to, for half of its memory."""
    for path, module in lm.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        weights = [
            (name, parameter, parameter.dtype)
            for name, parameter in module.get_base_layer().named_parameters(recurse=False)
            if parameter.dtype in (torch.bfloat16, torch.float16)
        ]
        for _, parameter, _ in weights:
            parameter.data = parameter.data.float()
        if weights:
            module.merge()
        for name, parameter, kind in weights:
            parameter.data = StoredTypes(kind).round(f"{path}.{name}", parameter.data)


def save_adapter(lm: Any, folder: Path, state: dict[str, torch.Tensor], *, embeddings: bool) -> None:
    """Write the adapter as PEFT does.

    Args:
        state: of the whole model, by its names.
        embeddings: whether the vocabulary has grown since the base model was saved, so that its embeddings go along.
    """
    if kind_of(lm) in VIRTUAL:  # PEFT asks the model itself, and not the state, what its virtual tokens are
        for name, parameter in lm.named_parameters():
            if parameter.requires_grad and name in state:
                parameter.data = state[name].to(parameter.device)
    plain = in_terms_of_base(lm, state)
    lm.save_pretrained(
        str(folder), state_dict=plain or state, safe_serialization=True, save_embedding_layers=embeddings
    )
    if plain is not None:
        say_plain(folder / "adapter_config.json")
    _name_base(folder / "adapter_config.json")
    scaling = scaling_of(lm.config)
    if scaling is not None:
        text = json.dumps({"rope_scaling": scaling}, indent=2) + "\n"
        (folder / BESIDE).write_text(text, "utf-8")


def _name_base(file: Path) -> None:
    """A base from the hub's cache by its id and commit, so that the adapter is of use on other machines."""
    settings = json.loads(file.read_text("utf-8"))
    known = on_the_hub(str(settings.get("base_model_name_or_path")))
    if known is not None:
        settings["base_model_name_or_path"], settings["revision"] = known
        file.write_text(json.dumps(settings, indent=2, sort_keys=True), "utf-8")


def trained_scaling(folder: str) -> dict[str, Any] | None:
    """The scaling of positions that an adapter was trained with."""
    file = Path(folder) / BESIDE
    return json.loads(file.read_text("utf-8")).get("rope_scaling") if file.is_file() else None


NOT_CUT = (
    "the adapter says something already when this run begins (it goes on from an earlier one, or has trained biases or "
    "virtual tokens), and the reference is that start, which cannot be put back into weights that are cut over the "
    "processes. Use strategy: ddp, zero1 or zero2."
)


class StepZero:
    """An adapted model as it is now, to be asked while its adapter goes on learning; without a copy of the model.

    A new LoRA, AdaLoRA or IA3 changes nothing yet: the model as it is now is the model with the adapter switched
    off. Any other adapter (one that goes on from an earlier run, virtual tokens, biases that are trained) says
    something already, and its weights are kept to be put back for the time of a question.

    Args:
        lm: with an adapter.
    """

    def __init__(self, lm: nn.Module) -> None:
        assert isinstance(lm, PeftModel), "a model without an adapter needs a copy to be remembered"
        self._lm = lm
        trained = {name: p for name, p in lm.named_parameters() if p.requires_grad}
        self.switched_off = _says_nothing(lm, trained)
        self._kept = {} if self.switched_off else {n: p.detach().clone() for n, p in trained.items()}

    @contextmanager
    def __call__(self) -> Iterator[nn.Module]:
        """The model as it was, inside the block; without gradients, and without dropout."""
        training = self._lm.training
        self._lm.eval()
        now: dict[str, torch.Tensor] = {}
        named = dict(self._lm.named_parameters())
        try:
            with torch.no_grad():
                if self.switched_off:
                    with self._lm.disable_adapter():
                        yield self._lm
                else:
                    for name, kept in self._kept.items():
                        if named[name].shape != kept.shape or type(named[name].data) is not type(kept):
                            raise UserError(NOT_CUT)
                        now[name] = named[name].data
                        named[name].data = kept.to(now[name])
                    yield self._lm
        finally:
            for name, value in now.items():
                named[name].data = value
            self._lm.train(training)


def _says_nothing(lm: PeftModel, trained: dict[str, nn.Parameter]) -> bool:
    """Whether the model with its adapter is exactly the model without: a factor of 0, or of 1, in each part."""
    settings: Any = lm.active_peft_config
    if settings.peft_type not in (PeftType.LORA, PeftType.ADALORA, PeftType.IA3):
        return False
    if settings.peft_type != PeftType.IA3 and settings.bias != "none":
        return False  # switched off, an adapter leaves its trained biases behind
    decides = {
        PeftType.LORA: (".lora_B.", ".lora_embedding_A."),
        PeftType.ADALORA: (".lora_E.",),
        PeftType.IA3: (".ia3_l.",),
    }[settings.peft_type]
    idle = 1.0 if settings.peft_type == PeftType.IA3 else 0.0
    marks = (".lora_", ".ia3_")
    if not all(any(mark in name for mark in marks) for name in trained):
        return False
    return all(bool((p == idle).all()) for n, p in trained.items() if any(mark in n for mark in decides))
