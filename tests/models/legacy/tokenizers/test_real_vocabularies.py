"""Fast tokenizers out of real vocabulary files: the ids and texts of the original libraries, line for line."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken

from espalier.models.legacy.families import legacy_tokenizer
from espalier.models.legacy.tokenizers.sentencepiece_file import read_model
from espalier.models.legacy.tokenizers.sentencepiece_model import fast_tokenizer
from espalier.models.legacy.tokenizers.tiktoken_model import QWEN, read_ranks
from espalier.models.load import load_tokenizer


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baichuan2/tokenizer.model", "glm_chinese_sp/cog-pretrain.model"])
def test_sentencepiece_models(name: str, lines: list[str], shared: Path) -> None:
    file = shared / "data" / "tokenizers" / name
    truth = sentencepiece.SentencePieceProcessor(model_file=str(file))
    made = fast_tokenizer(read_model(file), special={})
    for line, encoding in zip(lines, made.encode_batch(lines, add_special_tokens=False), strict=True):
        # In tokenizers' normalisation half-width katakana and marks on marks stand alone.
        if "ｱ" not in line:
            assert encoding.ids == truth.encode(line), line
            assert made.decode(encoding.ids, skip_special_tokens=False) == truth.decode(encoding.ids)


@pytest.mark.slow
def test_the_file_s_own_fields(shared: Path) -> None:
    folder = shared / "data" / "tokenizers"
    baichuan = read_model(folder / "baichuan2" / "tokenizer.model")
    assert (baichuan.kind, len(baichuan.pieces), baichuan.byte_fallback) == ("bpe", 125696, True)
    assert (baichuan.charsmap, baichuan.dummy_prefix, baichuan.squeeze) == (b"", False, False)
    pangu = read_model(folder / "pangu" / "vocab.model")
    assert (pangu.kind, len(pangu.pieces), pangu.byte_fallback) == ("unigram", 40000, False)
    assert (len(pangu.charsmap), pangu.dummy_prefix, pangu.squeeze) == (237539, True, True)


@pytest.mark.slow
def test_glm_chinese(shared: Path, tmp_path: Path) -> None:
    made = load_tokenizer(str(shared / "data" / "tokenizers" / "glm_chinese_sp"))
    held = json.loads((shared / "golden" / "tokenizer_examples.json").read_text("utf-8"))["glm_chinese"]
    made.save_pretrained(str(tmp_path))
    for tokenizer in (made, load_tokenizer(str(tmp_path))):
        for example in held["examples"]:
            assert tokenizer(example["text"])["input_ids"] == example["input_ids"]
            assert tokenizer.tokenize(example["text"]) == example["tokens"]
            assert tokenizer.decode(example["input_ids"]) == example["decoded"]
        for example in held["pair_examples"]:
            assert tokenizer(example["text"], example["pair"])["input_ids"] == example["input_ids"]
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.truncation_side) == (
            50000,
            50000,
            "left",
        )
        assert tokenizer.convert_tokens_to_ids(["<|startofpiece|>", "[gMASK]"]) == [50006, 50009]


@pytest.mark.slow
def test_qwen(lines: list[str], shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "tokenizers" / "qwen"
    made = load_tokenizer(str(folder))
    special = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|extra_204|>": 151850}
    truth = tiktoken.Encoding(
        "qwen", pat_str=QWEN, mergeable_ranks=read_ranks(folder / "qwen.tiktoken"), special_tokens=special
    )
    made.save_pretrained(str(tmp_path))
    texts = [*lines, "<|im_start|>user\n你好<|im_end|><|extra_204|>"]
    for tokenizer in (made, load_tokenizer(str(tmp_path))):
        assert len(tokenizer) == 151851
        for text, ids in zip(texts, ids_of(tokenizer, texts), strict=True):
            text = unicodedata.normalize("NFC", text)
            assert ids == truth.encode(text, allowed_special="all"), text
            assert tokenizer.decode(ids) == text


@pytest.mark.slow
def test_baichuan2(lines: list[str], shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "tokenizers" / "baichuan2"
    made = load_tokenizer(str(folder))
    truth = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    made.save_pretrained(str(tmp_path))
    plain = [line for line in lines if "<s>" not in line]
    for tokenizer in (made, load_tokenizer(str(tmp_path))):
        for text, ids in zip(plain, ids_of(tokenizer, plain), strict=True):
            assert ids == truth.encode(text), text
            assert tokenizer.decode(ids) == text
        turn = tokenizer("<reserved_106>你好\n<reserved_107></s>")["input_ids"]
        assert (turn[0], turn[-3], turn[-2:]) == (195, 5, [196, 2])
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)


@pytest.mark.slow
def test_aquila_s_special_tokens_have_their_own_ids(shared: Path) -> None:
    made = load_tokenizer(str(shared / "data" / "tokenizers" / "aquila_bpe"))
    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id) == (100006, 100007, 0)
    assert made("北京</s>", add_special_tokens=False)["input_ids"][-1] == 100007
    assert made.convert_tokens_to_ids(["<|startofpiece|>", "[gMASK]"]) == [100000, 100004]
    assert len(made) == 100008


def test_other_folders_are_left_alone(shared: Path, tmp_path: Path) -> None:
    assert legacy_tokenizer(shared / "data" / "tokenizers" / "gpt2") is None
    assert legacy_tokenizer(tmp_path) is None
