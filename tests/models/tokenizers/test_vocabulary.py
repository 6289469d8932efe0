"""A vocabulary that grows: the training goes on where it stopped, nothing old changes, new rows are means."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import espalier
from espalier.cli import app
from espalier.errors import UserError
from espalier.models.forward import TreeModel
from espalier.models.legacy.tokenizers.sentencepiece_file import read_model
from espalier.models.legacy.tokenizers.sentencepiece_model import fast_tokenizer
from espalier.models.load import load_lm, load_tokenizer, new_lm, train_tokenizer
from espalier.models.probe import probe
from espalier.models.saved import save_model
from espalier.models.tokenizers import new_pieces, vocabulary
from tests.conftest import Vocabulary
from tests.golden.shortened import shortened
from tests.models.conftest import CONFIGS

Tiny = Callable[..., nn.Module]
OLD = ["the cat sat on the mat", "a cat and a hat", "that is that"] * 8
NEW = [
    "the dog dug a ditch",
    "dogs dig ditches in the mud",
    "a muddy dog in 2024 and 2025",
    "a ditch, a dog, a mud hat",
] * 6


def encoded(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def by_loop(words: Counter[tuple[int, ...]], size: int) -> list[tuple[int, ...]]:
    """BPE by its definition: the most frequent pair of neighbours becomes one, `size` times."""
    table = {word: [(i,) for i in word] for word in words}
    found: list[tuple[int, ...]] = []
    for _ in range(size):
        pairs: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
        for word, parts in table.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        (chosen, most), *others = pairs.most_common(2) or [((), 0)]
        if most < 2:
            break
        assert not others or others[0][1] < most, "the definition says nothing about ties"
        found.append(chosen[0] + chosen[1])
        for word, parts in table.items():
            made: list[tuple[int, ...]] = []
            for part in parts:
                if made and (made[-1], part) == chosen:
                    made[-1] = made[-1] + part
                else:
                    made.append(part)
            table[word] = made
    return found


def test_new_pieces_are_those_of_the_definition_in_its_order() -> None:
    tokenizer = train_tokenizer(OLD, 280)
    texts = [*["xy"] * 4, *["xyz"] * 2, *["zw"] * 9, *["zwq"] * 3, "zwqv"]
    words = Counter(tuple(encoded(tokenizer, text)) for text in texts)
    pieces = new_pieces.joined_pieces(tokenizer, texts, 50)
    assert [p.parts for p in pieces] == by_loop(words, 50)
    assert [tokenizer.decode(list(p.parts)) for p in pieces] == ["zw", "xy", "zwq", "xyz"]
    for piece in pieces:
        assert piece.pair is not None and piece.text == "".join(piece.pair)


def test_pieces_stay_within_words_and_out_of_numbers() -> None:
    tokenizer = train_tokenizer(OLD, 280)
    texts = ["dog dog, dog. dog dig 2024 2024 2024", "mud-mud mud mud2 mud2 mud2 (x) (x) (x)"]
    said = [tokenizer.decode(list(p.parts)) for p in new_pieces.joined_pieces(tokenizer, texts, 50)]
    assert " dog" in said and "mud" in said and " mud" in said
    for text in said:
        letters = [c.isalpha() for c in text.strip()]
        assert all(letters) or not any(letters), text
        assert " " not in text.strip() and not any(c.isdigit() for c in text)


@pytest.fixture
def extended() -> tuple[Any, Any, list[new_pieces.NewPiece]]:
    """A tokenizer before and after, and the new pieces."""
    old, new = train_tokenizer(OLD, 290), train_tokenizer(OLD, 290)
    return old, new, vocabulary.extended(new, new_pieces.joined_pieces(new, NEW, 40))


def test_every_text_becomes_what_it_was_with_pieces_joined(
    extended: tuple[Any, Any, list[new_pieces.NewPiece]], tmp_path: Path
) -> None:
    old, new, pieces = extended
    assert len(pieces) > 10 and len(new) == len(old) + len(pieces)
    assert new.get_vocab().items() >= old.get_vocab().items()
    new.save_pretrained(str(tmp_path))
    again = load_tokenizer(str(tmp_path))
    numbers = again.get_vocab()
    parts = {numbers[p.text]: p.parts for p in pieces}
    for text in [*OLD, *NEW, "<|im_start|>user\nthe dog<|im_end|>", "dd  ditch\tditto 床前明月光"]:
        ids = encoded(again, text)
        assert ids == encoded(new, text)
        assert [i for number in ids for i in parts.get(number, (number,))] == encoded(old, text)
        assert again.decode(ids) == old.decode(encoded(old, text))
    assert vocabulary.characters_per_token(again, NEW) > 1.3 * vocabulary.characters_per_token(old, NEW)
    assert not any(any(c.isdigit() for c in p.text) for p in pieces), "numbers keep their digits"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 64])
def test_new_rows_are_the_means_of_the_old_pieces(
    extended: tuple[Any, Any, list[new_pieces.NewPiece]], tied: bool, spare: int
) -> None:
    old, new, pieces = extended
    ids = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    lm: Any = new_lm({**CONFIGS["llama"], "tie_word_embeddings": tied}, len(old) + spare, ids)
    before = [lm.get_input_embeddings().weight.clone(), lm.get_output_embeddings().weight.clone()]
    grown = vocabulary.grow_embeddings(lm, new, pieces)
    assert grown == max(0, len(new) - len(old) - spare)
    numbers = new.get_vocab()
    after = [lm.get_input_embeddings().weight, lm.get_output_embeddings().weight]
    assert (after[0] is after[1]) == tied
    for was, now in zip(before, after, strict=True):
        assert torch.equal(now[: len(old)], was[: len(old)])
        for piece in pieces:
            mean = was[list(piece.parts)].mean(0)
            torch.testing.assert_close(now[numbers[piece.text]], mean)
    assert lm.config.vocab_size == len(after[0])


def real(shared: Path, converted: Vocabulary, name: str) -> Any:
    """A real tokenizer; of the large byte-level ones the first 40,000 pieces."""
    folder = shared / "data" / "tokenizers"
    if name in ("gpt2", "aquila_bpe", "qwen"):
        return shortened(load_tokenizer(str(converted(name))), 40_000)
    file, special = {
        "baichuan2": ("baichuan2/tokenizer.model", {"<s>": 1, "</s>": 2}),
        "glm": ("glm_chinese_sp/cog-pretrain.model", {}),
        "unigram": ("chinese_llama_sp/chinese_sp.model", {"<s>": 1, "</s>": 2}),
    }[name]
    made = fast_tokenizer(read_model(folder / file), special=special)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def wiki(shared: Path) -> list[str]:
    lines = (shared / "data/text_zh/MNBVC_wiki.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    return [line for text in texts for line in text.splitlines() if line.strip()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "gain"),
    [
        ("gpt2", "bpe", 1.5),
        ("qwen", "bpe", 1.02),
        ("aquila_bpe", "bpe", 1.02),
        ("baichuan2", "bpe", 1.02),
        ("glm", "bpe", 1.02),
        ("glm", "sentencepiece", 1.005),
        ("unigram", "sentencepiece", 1.02),
    ],
)
def test_real_vocabularies_learn_real_chinese(
    shared: Path, converted: Vocabulary, name: str, kind: str, gain: float, tmp_path: Path
) -> None:
    tokenizer, lines = real(shared, converted, name), wiki(shared)[:600]
    apart, learned = lines[9::10], [line for i, line in enumerate(lines) if i % 10 != 9]
    old = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    known, before = tokenizer.get_vocab(), vocabulary.characters_per_token(tokenizer, apart)
    train = new_pieces.joined_pieces if kind == "bpe" else new_pieces.sentencepiece_pieces
    pieces = vocabulary.extended(tokenizer, train(tokenizer, learned, 300))
    assert len(pieces) > 50
    tokenizer.save_pretrained(str(tmp_path))
    again = load_tokenizer(str(tmp_path))
    assert again.get_vocab().items() >= known.items()
    assert len(again) == len(known) + len(pieces)
    assert vocabulary.characters_per_token(again, apart) > gain * before
    numbers = again.get_vocab()
    parts = {numbers[p.text]: p.parts for p in pieces}
    for line in [*apart, *learned[:20]]:
        ids, was = encoded(again, line), old.encode(line, add_special_tokens=False).ids
        if again.unk_token_id not in was:  # else more of the text is kept than was
            assert again.backend_tokenizer.decode(ids) == old.decode(was)
        if kind == "bpe":
            assert [i for number in ids for i in parts.get(number, (number,))] == was


@pytest.mark.parametrize("tied", [True, False])
def test_the_command_writes_a_model_that_reads_the_text_shorter(tied: bool, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(OLD, 290)
    ids = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    lm = new_lm({**CONFIGS["llama"], "tie_word_embeddings": tied}, len(tokenizer), ids)
    (tmp_path / "old").mkdir()
    save_model(tmp_path / "old", TreeModel(lm, probe(lm)), tokenizer)
    (tmp_path / "a.txt").write_text("\n".join(NEW), "utf-8")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in NEW), "utf-8")
    asked = ["vocab", "extend", str(tmp_path / "old"), "--text", str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"),
             "--size", "30", "--out", str(tmp_path / "new")]  # fmt: skip
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "new pieces (bpe)" in done.output and "characters per token" in done.output
    model, wider = espalier.load_model(str(tmp_path / "new"))
    assert len(wider) > len(tokenizer)
    assert model.config.tie_word_embeddings == tied
    assert len(encoded(wider, NEW[0])) < len(encoded(tokenizer, NEW[0]))
    text = torch.tensor([encoded(tokenizer, "zqx")])
    assert encoded(wider, "zqx") == text[0].tolist()
    old: Any = load_lm(str(tmp_path / "old"))
    with torch.no_grad():
        gap = model(text).logits[..., : len(tokenizer)] - old(text).logits[..., : len(tokenizer)]
    assert gap.abs().max() < 1e-5, "what it says of old pieces has not changed"
    again = CliRunner().invoke(app, asked)
    assert isinstance(again.exception, UserError) and "not empty" in str(again.exception)


def test_what_cannot_be_extended_is_said(shared: Path, converted: Vocabulary) -> None:
    folder = shared / "data" / "tokenizers"
    with pytest.raises(UserError, match="by a dictionary before its pieces"):
        new_pieces.fast(load_tokenizer(str(folder / "pangu")))
    with pytest.raises(UserError, match="goes on with a BPE"):
        new_pieces.joined_pieces(real(shared, converted, "unigram"), NEW, 3)
    with pytest.raises(UserError, match="write a space as"):
        new_pieces.sentencepiece_pieces(train_tokenizer(OLD, 290), NEW, 3)
