"""PanGu's tokenizer: the wanted ids, special strings in one piece, text there and back."""

from __future__ import annotations

import json
import pickle
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from espalier.errors import UserError
from espalier.models.legacy.tokenizers.pangu import PanguTokenizer
from espalier.models.legacy.tokenizers.words import cut
from espalier.models.load import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> Any:
    made = load_tokenizer(str(shared / "data" / "tokenizers" / "pangu"))
    assert isinstance(made, PanguTokenizer)
    return made


@pytest.fixture(scope="module")
def examples(shared: Path) -> list[dict[str, Any]]:
    file = shared / "golden" / "tokenizer_examples.json"
    return json.loads(file.read_text("utf-8"))["pangu"]["examples"]


@pytest.mark.slow
def test_the_wanted_ids(tokenizer: Any, examples: list[dict[str, Any]]) -> None:
    assert len(examples) > 10
    for example in examples:
        ids = tokenizer(example["text"], add_special_tokens=False)["input_ids"]
        assert ids == example["special_first_ids"], example["text"]
        assert tokenizer(example["text"])["input_ids"] == example["with_special_tokens"]
        assert tokenizer.encode(example["text"]) == example["with_special_tokens"]


def test_text_there_and_back(tokenizer: Any, examples: list[dict[str, Any]]) -> None:
    for example in examples:
        text = unicodedata.normalize("NFKC", example["text"].replace("\r", "").replace("\t", ""))
        assert tokenizer.decode(example["special_first_ids"]) == text
    ids = tokenizer("问题<sep>回答\n 第二行")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "问题回答\n 第二行"
    assert tokenizer.decode(ids) == "<s>问题<sep>回答\n 第二行<eot>"


def test_pairs_and_special_ids(tokenizer: Any) -> None:
    a, b = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("上联", "下联"))
    assert tokenizer("上联", "下联")["input_ids"] == [1, *a, 5, *b, 9]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 9, 6)
    assert (tokenizer.sep_token_id, tokenizer.unk_token_id, len(tokenizer)) == (5, 0, 40000)
    assert tokenizer.convert_tokens_to_ids(["<sep>", "▁中国", "no such piece"]) == [5, 96, 0]
    assert tokenizer.convert_ids_to_tokens([5, 96]) == ["<sep>", "▁中国"]


def test_real_lines_are_the_original_s_steps(tokenizer: Any, lines: list[str], shared: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(shared / "data" / "tokenizers" / "pangu" / "vocab.model")
    )
    special = ("<s>", "</s>", "<sep>", "<pad>", "<eot>", "<unk>")
    plain = [line for line in lines if not any(text in line for text in special)]
    found = tokenizer(plain, add_special_tokens=False)["input_ids"]
    for line, ids in zip(plain, found, strict=True):
        words = [word.replace(" ", "▂").replace("\n", "▃") for word in cut(line)]
        assert ids == pieces.encode(" ".join(words)), line


def test_tokens_can_be_added(tokenizer: Any) -> None:
    grown = pickle.loads(pickle.dumps(tokenizer))
    grown.add_tokens(["<turn>"])
    assert grown("你<turn>好", add_special_tokens=False)["input_ids"][1] == 40000 == len(grown) - 1
    assert grown.decode(grown("你<turn>好", add_special_tokens=False)["input_ids"]) == "你<turn>好"


def test_saved_and_loaded(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(str(tmp_path))
    again = load_tokenizer(str(tmp_path))
    for other in (again, pickle.loads(pickle.dumps(tokenizer))):
        assert other("上联:霜风<sep>下联:")["input_ids"] == tokenizer("上联:霜风<sep>下联:")["input_ids"]
    tokenizer.save_pretrained(str(tmp_path))  # over itself


def test_a_pointer_of_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"vocab\.model: is no sentencepiece model"):
        load_tokenizer(str(tmp_path))
