"""A model of the Llama family as one GGUF file, for llama.cpp and what is built on it.

Llama, Mistral, Qwen2 and Qwen3 have the same blocks there as here, so float32 files say the same to rounding.
What a file cannot say (a sliding window, scaled positions of other kinds, other architectures) is refused.
Llama's queries and keys are stored in the order in which llama.cpp rotates pairs: (0, 1), (2, 3), … where
transformers rotates (0, n/2), (1, n/2 + 1), …
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import UserError
from espalier.models.gguf.vocabulary import Vocabulary, vocabulary_of

ARCHITECTURES = {
    "LlamaForCausalLM": "LLAMA",
    "MistralForCausalLM": "LLAMA",
    "Qwen2ForCausalLM": "QWEN2",
    "Qwen3ForCausalLM": "QWEN3",
}
"""Classes of transformers, and the architecture of gguf that computes the same."""

TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
"""Of the matrices; vectors are float32 always. q8_0: blocks of 32 weights of a row with a float16 scale."""

BLOCK = 32


def write_gguf(lm: nn.Module, tokenizer: Any, file: Path, kind: str) -> dict[str, int]:
    """Write a model and its tokenizer; returns how many bytes are of each type.

    Args:
        lm: a plain causal language model.
        tokenizer: a fast one.
        file: to write.
        kind: one of `TYPES`.

    Raises:
        UserError: gguf is not installed, or the model or its tokenizer cannot be said in this format.
    """
    check_installed()
    import gguf

    config: Any = lm.config
    arch = architecture_of(lm)
    rows = int(lm.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    vocabulary = vocabulary_of(tokenizer, rows)
    writer: Any = gguf.GGUFWriter(str(file), gguf.MODEL_ARCH_NAMES[arch])
    _write_sizes(writer, config, arch, rows, kind)
    _write_tokenizer(writer, vocabulary, tokenizer)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    bytes_of = dict.fromkeys(("F32", "F16", "Q8_0"), 0)
    for name, tensor in _tensors(lm, names, arch).items():
        number = _type_of(tensor, kind)
        data = gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType[number])
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[number])
        bytes_of[number] += data.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {number.lower(): size for number, size in bytes_of.items() if size}


def check_installed() -> None:
    """Raises UserError where gguf is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError("GGUF files need the package gguf. Install it: pip install 'espalier-llm[gguf]'")


def architecture_of(lm: nn.Module) -> Any:
    """gguf's number of the architecture.

    Raises:
        UserError: there is none that computes the same; with what to do.
    """
    import gguf

    kind, config = type(lm).__name__, _settings(lm)
    if kind not in ARCHITECTURES:
        raise UserError(
            f"{kind} cannot be written as GGUF here: only {', '.join(ARCHITECTURES)}. llama.cpp's own converter "
            "(convert_hf_to_gguf.py) knows more; give it the folder that `espalier merge` or `convert` writes."
        )
    window = config.get("sliding_window")
    if (
        window is not None
        and config.get("use_sliding_window", True)
        and window < config["max_position_embeddings"]
    ):
        raise UserError(
            f"This model attends to the last {window} tokens alone, which llama.cpp does not do for it. Set sliding_window "
            "to null in config.json if texts stay shorter than that."
        )
    if config.get("hidden_act") != "silu":
        raise UserError(
            f"hidden_act is {config.get('hidden_act')}, and llama.cpp computes silu for this model."
        )
    if config.get("mlp_bias"):
        raise UserError(
            "Biases in the feed-forward parts cannot be checked against llama.cpp here (mlp_bias)."
        )
    return getattr(gguf.MODEL_ARCH, ARCHITECTURES[kind])


def _settings(lm: Any) -> dict[str, Any]:
    settings: dict[str, Any] = lm.config.to_dict()
    return settings


def _write_sizes(writer: Any, config: Any, arch: Any, rows: int, kind: str) -> None:
    import gguf

    writer.add_name(Path(config.name_or_path or "model").name)
    writer.add_file_type(gguf.LlamaFileType[TYPES[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(rows)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = _head_width(config)
    if arch == gguf.MODEL_ARCH.QWEN3 or width * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(width)
        writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    rope = dict(config.rope_parameters or {})
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    scaling = rope.get("rope_type", "default")
    if scaling == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif scaling == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    elif scaling not in ("default", "llama3"):
        raise UserError(
            f"rope scaling of type {scaling} has no place in a GGUF file; linear, yarn and llama3 have."
        )


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _write_tokenizer(writer: Any, vocabulary: Vocabulary, tokenizer: Any) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.cut is not None:
        writer.add_tokenizer_pre(vocabulary.cut)
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_types(vocabulary.kinds)
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    ids, bare = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    writer.add_add_bos_token(
        tokenizer.bos_token_id is not None and ids[: -len(bare)][:1] == [tokenizer.bos_token_id]
    )
    writer.add_add_eos_token(len(ids) > len(bare) and ids[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _tensors(lm: nn.Module, names: Any, arch: Any) -> dict[str, Tensor]:
    """float32 tensors by gguf's names; a head that is the embeddings is left out, and is taken from there."""
    import gguf

    config: Any = lm.config
    inputs: Any = lm.get_input_embeddings()  # type: ignore[operator]
    head: Any = lm.get_output_embeddings()  # type: ignore[operator]
    tensors: dict[str, Tensor] = {}
    for name, parameter in lm.state_dict().items():
        if name == "lm_head.weight" and head.weight is inputs.weight:
            continue
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise UserError(f"{name}: gguf has no name for this tensor of {type(lm).__name__}.")
        tensor = parameter.detach().float().cpu().contiguous()
        if arch == gguf.MODEL_ARCH.LLAMA and ".self_attn.q_proj." in name:
            tensor = _in_pairs(tensor, config.num_attention_heads)
        elif arch == gguf.MODEL_ARCH.LLAMA and ".self_attn.k_proj." in name:
            tensor = _in_pairs(tensor, config.num_key_value_heads)
        tensors[new] = tensor
    factors = _llama3_factors(config)
    if factors is not None:
        tensors["rope_freqs.weight"] = factors
    return tensors


def _in_pairs(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head from (first halves, second halves) to pairs."""
    halves = tensor.view(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()


def _llama3_factors(config: Any) -> Tensor | None:
    """What each rotary frequency is divided by under llama3's scaling (Llama 3.1's model card), else None."""
    rope = dict(config.rope_parameters or {})
    if rope.get("rope_type") != "llama3":
        return None
    width = _head_width(config)
    wave = 2 * math.pi * float(rope["rope_theta"]) ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    trained = float(rope["original_max_position_embeddings"])
    # From the whole factor for long waves to none for short ones, linear in the frequency in between.
    share = ((trained / wave - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - share) / float(rope["factor"]) + share)).float()


def _type_of(tensor: Tensor, kind: str) -> str:
    if tensor.dim() == 1 or kind == "f32":
        return "F32"
    if kind == "q8_0" and tensor.shape[-1] % BLOCK == 0:
        return "Q8_0"
    return "F16"
