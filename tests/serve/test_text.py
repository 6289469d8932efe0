"""Text from tokens, as it comes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from espalier.models import load
from espalier.serve.text import AnswerText, Thoughts, overlap, whole_characters

WORDS = "你好，世界。Hello world, how are you? 😀🏳️‍🌈 naïve  \n\n\tx = [1, 2]"


def streamed(tokenizer: Any, tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[str, AnswerText]:
    text = AnswerText(tokenizer, stop)
    pieces = []
    for token in tokens:
        pieces.append(text.push(token))
        assert not pieces[-1].endswith("\ufffd"), "half a character was shown"
        if text.stopped:
            break
    return "".join(pieces) + text.end(), text


def made(name: str) -> Any:
    """A tokenizer that writes spaces as Llama's does, bytes for what it does not know, or word by word as BERT's does."""
    if name == "bytes":
        return load.train_tokenizer([WORDS] * 20, 300)
    if name == "words":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        backend.train_from_iterator(
            [WORDS] * 9, trainers.WordPieceTrainer(special_tokens=["[UNK]"], vocab_size=200)
        )
    else:
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        known = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(special_tokens=known[:1], vocab_size=120, limit_alphabet=40)
        backend.train_from_iterator([WORDS] * 9, trainer)
        backend.add_tokens(known)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=backend.id_to_token(0))


@pytest.mark.parametrize("name", ["bytes", "spaces", "words"])
def test_the_pieces_are_the_text_of_the_whole(name: str) -> None:
    tokenizer = made(name)
    maker = random.Random(5)
    ids = tokenizer.encode(WORDS, add_special_tokens=False)
    # A run of bytes that is no text as a whole is written otherwise than its parts; only noise has such runs.
    known = [
        n for token, n in tokenizer.get_vocab().items() if not (name == "spaces" and token.startswith("<0x"))
    ]
    for tokens in (ids, [maker.choice(sorted(known)) for _ in range(200)]):
        whole = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert streamed(tokenizer, tokens)[0] == whole_characters(whole)


@pytest.mark.parametrize(
    ("stop", "left"), [("how", "Hello world, "), ("llo w", "He"), ("d, how are yoX", None)]
)
def test_a_stop_text_ends_the_answer_wherever_tokens_are_cut(stop: str, left: str | None) -> None:
    tokenizer: Any = load.train_tokenizer(["Hello"] * 5, 280)
    said = "Hello world, how are you?"
    found, text = streamed(tokenizer, tokenizer.encode(said, add_special_tokens=False), (stop, "never"))
    assert found == (said if left is None else left)
    assert text.stopped == ("" if left is None else "stop")


def parts(text: str, size: int, inside: bool = False) -> dict[str, str]:
    thoughts = Thoughts(inside)
    said = {"thoughts": "", "answer": ""}
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    for piece in pieces:
        for kind, more in thoughts.feed(piece):
            said[kind] += more
    for kind, more in thoughts.end():
        said[kind] += more
    return said


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_thoughts_are_told_apart_however_the_text_is_cut(size: int) -> None:
    assert parts("<think>\nso < it </is\n\n</think>\n\nYes.\n<think>", size) == {
        "thoughts": "so < it </is",
        "answer": "Yes.\n<think>",
    }
    assert parts("thinking</think>\nYes", size, inside=True) == {"thoughts": "thinking", "answer": "Yes"}
    assert parts(" <thin air", size) == {"thoughts": "", "answer": " <thin air"}
    assert parts("<think>on and", size) == {"thoughts": "on and", "answer": ""}
    assert parts("plain", size) == {"thoughts": "", "answer": "plain"}
    assert parts("<thi", size) == {"thoughts": "", "answer": "<thi"}


def test_what_may_begin_a_mark_is_held() -> None:
    assert overlap("abc", "cd") == 1 and overlap("abcd", "cd") == 0 and overlap("", "x") == 0


def filtered(said: str, *words: str) -> tuple[str, str]:
    tokenizer: Any = load.train_tokenizer(["Hello"] * 5, 280)
    text = AnswerText(tokenizer, (), words)
    shown = []
    for token in tokenizer.encode(said, add_special_tokens=False):
        shown.append(text.push(token))
        if text.stopped:
            break
    return "".join(shown) + text.end(), text.stopped


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("you are Damn right", "you are "), ("damn", ""), ("damnation and goddamn", None), ("well, damn", "well, "),
        ("今天坏蛋来了", "今天"), ("坏", None), ("a class act", None), ("an ass", "an "), ("dam", None),
    ],
)  # fmt: skip
def test_a_banned_word_ends_the_answer_before_it_is_said(said: str, left: str | None) -> None:
    found, stopped = filtered(said, "damn", "坏蛋", "ass")
    assert found == (said if left is None else left)
    assert stopped == ("" if left is None else "banned")
