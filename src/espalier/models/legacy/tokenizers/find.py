"""Which folder wants which tokenizer: the old families by the names of their vocabulary files.

What is made is a `PreTrainedTokenizerFast` that saves itself as a plain tokenizer.json, or PanGu's own class.
Folders that transformers reads by itself (a tokenizer.json, Llama's classes, …) are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from espalier.errors import UserError
from espalier.models.legacy.tokenizers import chat, pangu, tiktoken_model
from espalier.models.legacy.tokenizers.sentencepiece_file import (
    CONTROL,
    SentencePieceModel,
    is_sentencepiece,
    read_model,
)
from espalier.models.legacy.tokenizers.sentencepiece_model import fast_tokenizer

GLM_SPECIAL = (
    *("<|endoftext|>", "[SEP]", "[CLS]", "[MASK]", "[UNUSED1]", "[UNUSED2]"),
    *("<|startofpiece|>", "<|endofpiece|>", "[sMASK]", "[gMASK]"),
)
"""What GLM-chinese adds behind its pieces, in this order."""
AQUILA_SPECIAL = (
    *("<|startofpiece|>", "<|endofpiece|>", "[UNUSED]", "[MASK]", "[gMASK]", "[sMASK]", "[CLS]", "</s>"),
)
CHATGLM3_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
IMAGES = 20000
"""Ids of images that stood before the text's in ChatGLM-6B before April 2023."""


def legacy_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder with the original files of an old family; None for any other folder.

    Raises:
        UserError: the vocabulary file is broken, or a library for it is missing.
    """
    if (folder / "tokenizer.json").is_file() or not folder.is_dir():
        return None
    said, config = _read(folder / "tokenizer_config.json"), _read(folder / "config.json")
    kind, model_type = str(said.get("tokenizer_class", "")), str(config.get("model_type", ""))
    sentencepiece = folder / "tokenizer.model"
    if (folder / pangu.FILE).is_file():
        return pangu.PanguTokenizer(str(folder / pangu.FILE), chat_template=chat.PANGU)
    if (folder / "cog-pretrain.model").is_file():
        return _glm_chinese(folder / "cog-pretrain.model")
    if (folder / "ice_text.model").is_file():
        early = config.get("vocab_size") == 150528 or said.get("num_image_tokens") == IMAGES
        return _chatglm(folder / "ice_text.model", images=IMAGES if early else 0)
    if (folder / "qwen.tiktoken").is_file():
        return _qwen(folder / "qwen.tiktoken")
    if sentencepiece.is_file() and (kind.startswith("ChatGLM") or "chatglm" in model_type):
        return (_chatglm2 if is_sentencepiece(sentencepiece) else _glm_4)(sentencepiece, said)
    if sentencepiece.is_file() and (
        kind.lower().startswith(("baichuan", "internlm")) or model_type in ("baichuan", "internlm")
    ):
        internlm = kind.startswith("InternLM") or model_type == "internlm"
        return _plain(sentencepiece, said, internlm=internlm)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        added = _read(folder / "added_tokens.json")
        if model_type == "aquila" or (said.get("bos_token"), said.get("eos_token")) == ("[CLS]", "</s>"):
            ends = {"bos_token": "[CLS]", "eos_token": "</s>", "pad_token": "<|endoftext|>"}
            return _byte_level(folder, AQUILA_SPECIAL, ends, chat.AQUILA)
        if kind.startswith("Moss") or model_type == "moss":
            own = sorted(added, key=added.__getitem__)
            ends = {"bos_token": "<|endoftext|>", "eos_token": "<eom>", "pad_token": "<eom>"}
            return _byte_level(folder, own, ends, chat.MOSS)
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except OSError:
        return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not valid JSON ({error.msg}).") from error
    return found if isinstance(found, dict) else {}


def _wrapped(made: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **settings,
    )


def _around(made: Tokenizer, single: str, pair: str, names: Sequence[str]) -> None:
    """Special tokens around a text and a pair, in the words of the tokenizers library."""
    ids = [(name, made.token_to_id(name)) for name in names]
    made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def _following(model: SentencePieceModel, names: Sequence[str]) -> dict[str, int]:
    return {name: len(model.pieces) + i for i, name in enumerate(names)}


def _piece_ids(model: SentencePieceModel, names: Sequence[str]) -> dict[str, int]:
    """Those of the names that are pieces of the model, with their ids."""
    known = {text: i for i, (text, _, _) in enumerate(model.pieces)}
    return {name: known[name] for name in names if name in known}


def _glm_chinese(file: Path) -> PreTrainedTokenizerFast:
    """``[CLS]`` A ``<|endoftext|>``; truncated at the left, as the original."""
    model = read_model(file)
    made = fast_tokenizer(model, special=_following(model, GLM_SPECIAL))
    single, names = "[CLS] $A <|endoftext|>", ["[CLS]", "[SEP]", "<|endoftext|>"]
    _around(made, single, "[CLS] $A [SEP] $B:0 <|endoftext|>", names)
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    return _wrapped(
        made,
        **ends,
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        truncation_side="left",
        chat_template=chat.GLM,
    )


def _chatglm(file: Path, *, images: int) -> PreTrainedTokenizerFast:
    """A ``[gMASK] <sop>``, or A ``[gMASK] <sop>`` B ``<eop>``; newlines, tabs and runs of spaces have pieces."""
    model = read_model(file)
    model.pieces[:0] = [(f"<image_{i}>", 0.0, CONTROL) for i in range(images)]
    names = ["<unk>", "<pad>", "</s>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
    special = _piece_ids(model, names)
    written = [("\n", "<n>"), ("\t", "<|tab|>")]
    written += [(" " * k, f"<|blank_{k}|>") for k in range(80, 1, -1)]
    known = {text for text, _, _ in model.pieces}
    made = fast_tokenizer(
        model, special=special, written=[(t, piece) for t, piece in written if piece in known]
    )
    _around(made, "$A [gMASK] <sop>", "$A [gMASK] <sop> $B:0 <eop>", ["[gMASK]", "<sop>", "<eop>"])
    ends = {"bos_token": "<sop>", "eos_token": "<eop>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _wrapped(made, **ends, mask_token="[MASK]", padding_side="left", chat_template=chat.CHATGLM)


def _chatglm2(file: Path, said: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """``[gMASK] <sop>`` A, and ChatGLM3's marks of roles.

    The original has its special tokens by their ids alone, and calls two of them "sop" and "eop", which are in
    words ("people"). Here templates must write them, so these two have brackets.
    """
    model = read_model(file)
    names = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
    third = any(role in json.dumps(dict(said)) for role in CHATGLM3_ROLES)
    made = fast_tokenizer(model, special=_following(model, [*names, *(CHATGLM3_ROLES if third else ())]))
    _around(made, "[gMASK] <sop> $A", "[gMASK] <sop> $A $B:0 </s>", ["[gMASK]", "<sop>", "</s>"])
    ends = {"eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    template = chat.CHATGLM3 if third else chat.CHATGLM2
    return _wrapped(made, **ends, padding_side="left", chat_template=template)


def _glm_4(file: Path, said: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """GLM-4's tiktoken file; its special tokens are those of tokenizer_config.json."""
    ranks = tiktoken_model.read_ranks(file)
    listed = said.get("added_tokens_decoder") or {}
    special = {token["content"]: int(number) for number, token in listed.items()}
    if "<|endoftext|>" not in special:
        raise UserError(
            f"{file.parent / 'tokenizer_config.json'}: lists no special tokens (added_tokens_decoder). "
            "Copy GLM-4's own file here."
        )
    made = tiktoken_model.fast_tokenizer(ranks, pattern=tiktoken_model.GLM_4, special=special, compose=False)
    begin = "[gMASK] <sop>" if "<sop>" in special else ""
    _around(made, f"{begin} $A", f"{begin} $A $B:0", begin.split())
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return _wrapped(made, **ends, padding_side="left", chat_template=said.get("chat_template"))


def _qwen(file: Path) -> PreTrainedTokenizerFast:
    """Qwen of the first generation; its text is not put between any marks."""
    ranks = tiktoken_model.read_ranks(file)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    special = {name: len(ranks) + i for i, name in enumerate(names)}
    made = tiktoken_model.fast_tokenizer(ranks, pattern=tiktoken_model.QWEN, special=special, compose=True)
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return _wrapped(made, **ends, chat_template=chat.QWEN)


def _plain(file: Path, said: Mapping[str, Any], *, internlm: bool) -> PreTrainedTokenizerFast:
    """Baichuan and InternLM: sentencepiece, with a bos token in front where the configuration says so."""
    model = read_model(file)
    made = fast_tokenizer(model, special=_piece_ids(model, ["<unk>", "<s>", "</s>"]))
    begin = "<s> " if said.get("add_bos_token", internlm) else ""
    end = " </s>" if said.get("add_eos_token", False) else ""
    if begin or end:
        _around(made, f"{begin}$A{end}", f"{begin}$A{end} {begin}$B:0{end}", (begin + end).split())
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    template = chat.INTERNLM if internlm else None
    if not internlm and len(model.pieces) > 196:
        template = chat.baichuan(model.pieces[195][0], model.pieces[196][0])
    return _wrapped(made, **ends, pad_token=_text(said.get("pad_token")) or "<unk>", chat_template=template)


def _text(token: Any) -> str | None:
    """A token as tokenizer_config.json writes it: its text, or a mapping with it."""
    return token.get("content") if isinstance(token, Mapping) else token


def _byte_level(
    folder: Path, added: Sequence[str], ends: Mapping[str, str], template: str
) -> PreTrainedTokenizerFast:
    """BPE in GPT-2's form with special tokens behind its vocabulary: Aquila, MOSS."""
    made = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in added])
    known = made.get_vocab()
    names = {**ends, "unk_token": "<|endoftext|>"}
    kept = {name: text for name, text in names.items() if text in known}
    return _wrapped(made, **kept, chat_template=template)
