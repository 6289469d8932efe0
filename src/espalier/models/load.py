"""Models and tokenizers from folders, hub ids, or from nothing but a configuration.

This is the one door to the Hugging Face model classes. No pickle is read unless it is asked for.
Weights are float32 (the optimiser's master copy) unless asked otherwise; precision is the engine's affair.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from espalier.errors import UserError
from espalier.models.legacy import checkpoint
from espalier.models.legacy.registration import register
from espalier.models.legacy.tokenizers.find import legacy_tokenizer
from espalier.models.legacy.weights import refusal
from espalier.models.quantise import cpm_transformers as cpm_transformers  # transformers learns of it by this
from espalier.models.quantise.methods import Quantisation, check_readable, entry_of, settings
from espalier.models.quantise.turn import check_quantised, dequantised, quantised

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Of a new tokenizer: the padding, and the marks around a turn (the last one ends every answer)."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load_lm(
    name: str,
    *,
    dtype: torch.dtype | None = torch.float32,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    quantisation: Quantisation | None = None,
) -> nn.Module:
    """A causal language model from a folder with safetensors, or from the hub when `name` is no path.

    Old Chinese checkpoints in their original layout are converted on the way (`espalier.models.legacy`).

    Args:
        name: a folder or a hub id.
        dtype: of the parameters; None keeps the file's.
        trust_remote_code: run Python code that comes with the model.
        allow_pickle: read .bin files, through torch's safe loader, where there are no safetensors.
        quantisation: store the linear layers in few bits as they are read; a folder may also be quantised already.

    Raises:
        UserError: the folder is missing, has no config or no weights, or holds another kind of model.
    """
    check_folder(name, allow_pickle=allow_pickle)
    check_readable(name)
    if quantisation is not None and entry_of(name) is not None:
        raise UserError(f"{name}: is quantised already. Remove quantization_bit, or name the plain model.")
    _quiet()
    name = str(checkpoint.fetched(name, allow_pickle=allow_pickle) or name)
    local = Path(name).exists()
    old = checkpoint.config_of(Path(name)) if local else None
    if old is not None:
        legacy = checkpoint.load_legacy(Path(name), old, dtype=dtype, allow_pickle=allow_pickle)
        return legacy if quantisation is None else quantised(legacy, quantisation)
    register(Path(name))
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, local_files_only=local)
        if config.model_type == "rwkv":
            config.rescale_every = 0  # transformers halves weights in evaluation, and would save them so
        lm: nn.Module = AutoModelForCausalLM.from_pretrained(
            name,
            config=without_dropout(config),
            dtype="auto" if dtype is None else dtype,
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=trust_remote_code,
            local_files_only=local,
            **({} if quantisation is None else {"quantization_config": settings(quantisation)}),
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise UserError(
            f"{name}: cannot be loaded as a causal language model ({_first_line(error)}). "
            "Give a folder with config.json and *.safetensors, or the id of such a model on the hub."
        ) from error
    if quantisation is not None:
        check_quantised(lm, quantisation)
    return lm


def new_lm(config: dict[str, Any], vocab_size: int, token_ids: dict[str, int | None]) -> nn.Module:
    """A new model with random weights.

    Args:
        config: transformers' own configuration keys, ``model_type`` among them.
        vocab_size: of the tokenizer; wins over a ``vocab_size`` in the configuration that is smaller.
        token_ids: ``bos_token_id``, ``eos_token_id``, ``pad_token_id`` of the tokenizer.
    """
    _quiet()
    settings = dict(config)
    kind = settings.pop("model_type", None)
    if kind is None:
        raise UserError(
            "model_config: no model_type. Name an architecture of transformers, such as model_type: qwen3."
        )
    settings["vocab_size"] = max(int(settings.get("vocab_size") or 0), vocab_size)
    try:
        made = AutoConfig.for_model(kind, **{**settings, **token_ids})
        return AutoModelForCausalLM.from_config(without_dropout(made), dtype=torch.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"model_config: {_first_line(error)}") from error


def without_dropout(config: Any) -> Any:
    """The configuration with every dropout at 0: policy and reference must differ by their weights alone, and
    tree attention has none. LoRA's own dropout is another matter."""
    for key, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in key or key.endswith("pdrop")):
            setattr(config, key, 0.0)
    return config


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer from a model folder, a folder with vocab.json and merges.txt, or the hub."""
    _quiet()
    name = str(checkpoint.fetched(name, weights=False) or name)
    folder = Path(name)
    try:
        old = legacy_tokenizer(folder) if folder.is_dir() else None
        if old is not None:
            return _completed(old)
        if folder.is_dir() and not (folder / "tokenizer_config.json").is_file():
            return _bare_tokenizer(folder)
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, local_files_only=folder.is_dir()
        )
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more special
        raise UserError(
            f"{name}: no tokenizer can be loaded from here ({_first_line(error)}). "
            "Set `tokenizer:` to a folder that holds tokenizer.json, or to a hub id."
        ) from error
    return _completed(tokenizer)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's files of any kind."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "*.model", "*.tiktoken")
    return any(True for name in names for _ in folder.glob(name))


def _bare_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A folder with only a vocabulary: byte-level BPE in the form of GPT-2, or one tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if (folder / "tokenizer.json").is_file():
        made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary, merges = str(folder / "vocab.json"), str(folder / "merges.txt")
        made = Tokenizer(models.BPE.from_file(vocabulary, merges))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    else:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise UserError(
            f"{folder}: no tokenizer here (found {found}). "
            "Wanted tokenizer.json, tokenizer_config.json, or vocab.json with merges.txt."
        )
    known = made.get_vocab()
    end = "<|endoftext|>" if "<|endoftext|>" in known else None
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, pad_token=end)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS[1:])})
    if end is None:
        tokenizer.add_special_tokens({"pad_token": SPECIAL_TOKENS[0]})
    tokenizer.eos_token = SPECIAL_TOKENS[2]
    tokenizer.chat_template = CHATML
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE on the user's own text, with ChatML as its template; every text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=SPECIAL_TOKENS[2], pad_token=SPECIAL_TOKENS[0]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _completed(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.pad_token is None:
        # Never read: rows are not padded, or their padding is masked. It only has to be in the vocabulary.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def end_tokens(lm: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids at which an answer ends: the tokenizer's end token, the model's own, and ``<|im_end|>``."""
    found: set[int] = set()
    config: Any = getattr(lm, "generation_config", None)
    for value in (tokenizer.eos_token_id, getattr(config, "eos_token_id", None)):
        found.update([value] if isinstance(value, int) else value or [])
    turn_end = tokenizer.get_vocab().get("<|im_end|>")
    if turn_end is not None:
        found.add(turn_end)
    return sorted(found)


def fit_vocabulary(lm: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """Grow the embeddings when the tokenizer knows more tokens than the model; returns how many were added."""
    rows = lm.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    missing = len(tokenizer) - rows
    if missing > 0:
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=True)  # type: ignore[operator]
    return max(0, missing)


def blocks(lm: nn.Module) -> nn.ModuleList:
    """The transformer blocks, lowest first.

    Raises:
        ValueError: no list of as many modules as the configuration has layers.
    """
    config: Any = lm.config
    layers = int(config.get_text_config().num_hidden_layers)
    for module in lm.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module
    raise ValueError(f"{type(lm).__name__}: no list of {layers} blocks found")


def freeze_lowest(lm: nn.Module, ratio: float) -> int:
    """Freeze the embeddings and the lowest `ratio` of the blocks; returns how many blocks are frozen.

    Nothing below the first trainable block needs a gradient, so autograd neither runs there nor keeps
    activations.
    """
    stack = blocks(lm)
    frozen = int(ratio * len(stack))
    if frozen == 0:
        return 0
    lowest = list(stack)[:frozen]
    kept = {id(p) for block in list(stack)[frozen:] for p in block.parameters()}
    for module in [lm.get_input_embeddings(), *lowest]:  # type: ignore[operator]
        for parameter in module.parameters():
            if id(parameter) not in kept:
                parameter.requires_grad_(False)
    for name, parameter in lm.named_parameters():
        if any(part in name for part in ("wpe", "position_embeddings", "embed_positions")):
            parameter.requires_grad_(False)
    return frozen


def check_folder(name: str, *, allow_pickle: bool = False) -> None:
    """Whether a name that is a path is a model's or an adapter's folder with weights that may be read.

    Raises:
        UserError: it is not; what was found, what was wanted, what to do.
    """
    folder = Path(name)
    if not folder.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise UserError(f"{name}: there is no such folder. Check model_name_or_path.")
        return
    if folder.is_file() and checkpoint.config_of(folder) is None:
        raise UserError(f"{name}: is a file. Wanted the folder that holds config.json and *.safetensors.")
    if (folder / "adapter_config.json").is_file():
        return
    if not (folder / "config.json").is_file() and checkpoint.config_of(folder) is None:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise UserError(f"{name}: no config.json here (found {found}). Wanted a Hugging Face model folder.")
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
    try:
        made = json.loads(Path(value).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"model_config: cannot read {value} ({error.strerror}).") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{value}:{error.lineno}: not valid JSON ({error.msg}).") from error
    if not isinstance(made, dict):
        raise UserError(f"{value}: wanted a JSON object with model_type and sizes.")
    return made


def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("transformers", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]


def hidden_size(lm: nn.Module) -> int:
    config: Any = lm.config
    return int(config.get_text_config().hidden_size)


def load_with_adapter(
    name: str,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    quantisation: Quantisation | None = None,
) -> nn.Module:
    """A model folder, or an adapter folder: then its base model with the adapter merged into it.

    Where weights are to be quantised, that is done with the merged ones; a base that is quantised is turned back
    into floats first, because few bits have no room for what an adapter adds.
    """
    from espalier.models import adapters

    said: dict[str, Any] = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    settings = Path(name) / "adapter_config.json"
    if not settings.is_file():
        return load_lm(name, quantisation=quantisation, **said)
    base = json.loads(settings.read_text("utf-8")).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{settings}: names no base model. Set base_model_name_or_path in it.")
    lm = adapters.merged(adapters.load_adapter(dequantised(load_lm(base, **said)), name, trainable=False))
    return lm if quantisation is None else quantised(lm, quantisation)


def checkpoint_activations(lm: nn.Module) -> None:
    """Keep the inputs of the blocks only, and compute the rest again in the backward (Chen et al. 2016)."""
    model: Any = lm
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Transformers makes the embeddings' output require gradients, which only reentrant checkpoints need; here
    # it would send the backward through every frozen block.
    model.disable_input_require_grads()


def context_length(lm: nn.Module) -> int:
    """The most positions that the model was made for; 2048 where its configuration does not say."""
    config: Any = lm.config
    found = config.to_dict().get("max_position_embeddings") or config.to_dict().get("n_positions")
    return int(found) if isinstance(found, int) else 2048
