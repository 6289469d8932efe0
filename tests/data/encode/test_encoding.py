"""Tokens and flags: trained tokens decode to exactly the trained text, whatever stands at its borders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from espalier.data.encode.encoding import adds_bos, encode_pieces, encode_texts
from espalier.data.encode.templates import Piece, choose_template
from espalier.data.read.sources import DatasetSpec
from espalier.data.records import Message
from espalier.errors import UserError
from tests.data.listed import load_records


def trained_texts(tokenizer: Any, ids: list[int], flags: list[bool]) -> list[str]:
    """What each unbroken run of trained tokens says."""
    runs: list[list[int]] = []
    for index, (token, flag) in enumerate(zip(ids, flags, strict=True)):
        if flag and not (index and flags[index - 1]):
            runs.append([])
        if flag:
            runs[-1].append(token)
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]


@pytest.fixture(params=["aquila", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sharegpt_zh", "llamafactory_demo/alpaca_en_demo.json", "numina_cot"])
def test_trained_tokens_decode_to_the_answers_and_their_ends(shared: Path, tokenizer: Any, name: str) -> None:
    chats = load_records([DatasetSpec(str(shared / "data" / name))], "chat", skip_bad=True).records[:100]
    template = choose_template(tokenizer)
    rendered = [template.render(chat.messages) for chat in chats]
    for chat, pieces, (ids, flags) in zip(
        chats, rendered, encode_pieces(tokenizer, rendered, bos=False), strict=True
    ):
        answers = [message.content for message in chat.messages if message.role == "assistant"]
        assert trained_texts(tokenizer, ids, flags) == [answer + template.end_of_turn for answer in answers]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == "".join(
            piece.text for piece in pieces
        )


def test_the_ids_are_those_of_the_tokenizers_own_chat_template(shared: Path, aquila: Any) -> None:
    chats = load_records([DatasetSpec(str(shared / "data/numina_cot"))], "chat").records[:50]
    template = choose_template(aquila)
    paths = encode_pieces(aquila, [template.render(chat.messages) for chat in chats], bos=False)
    for chat, (ids, _) in zip(chats, paths, strict=True):
        turns = [{"role": message.role, "content": message.content} for message in chat.messages]
        assert ids == aquila.apply_chat_template(turns, tokenize=True, return_dict=False)


@pytest.mark.parametrize(
    "answer", ["\nhello", "\n\n你好", " hello", "  x", "😀", "𠮷野家", "\t", "é", "hello ", "5\n"]
)
@pytest.mark.parametrize("question", ["hi", "你好 ", "a\n", "😀"])
def test_answers_at_awkward_borders(tokenizer: Any, question: str, answer: str) -> None:
    template = choose_template(tokenizer)
    turns = [Message("user", question), Message("assistant", answer)] * 2
    [(ids, flags)] = encode_pieces(tokenizer, [template.render(turns)], bos=False)
    assert trained_texts(tokenizer, ids, flags) == [answer + template.end_of_turn] * 2


@pytest.mark.parametrize(
    ("before", "answer"), [("Say: ", "hello"), ("表情 ", "😀"), ("a", "b"), ("x\n", "\ny")]
)
def test_a_token_that_would_join_prompt_and_answer_is_cut(tokenizer: Any, before: str, answer: str) -> None:
    pieces = [Piece(before, False), Piece(answer, True), Piece("\n", False)]
    [(ids, flags)] = encode_pieces(tokenizer, [pieces], bos=False)
    assert trained_texts(tokenizer, ids, flags) == [answer]
    # generation begins behind exactly these tokens
    assert ids[: flags.index(True)] == encode_texts(tokenizer, [before])[0]


def test_a_bos_token_is_added_once_and_never_trained(aquila: Any) -> None:
    bos = aquila.bos_token
    pieces = [[Piece("a", False), Piece("b", True)], [Piece(f"{bos}a", False), Piece("b", True)]]
    first, second = encode_pieces(aquila, pieces, bos=True)
    assert first == second
    assert first[0][0] == aquila.bos_token_id and not first[1][0]
    assert not adds_bos(aquila)


def word_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """Whole words after a metaspace, lower-cased: offsets that are not those of a byte-level BPE."""
    words = ["▁user:", "▁assistant:", "▁hello", "▁world", "</s>", "<s>", "<unk>", "▁ab"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", bos_token="<s>", unk_token="<unk>", **options
    )


def test_a_metaspace_tokenizer_is_encoded_whole() -> None:
    tokenizer = word_tokenizer()
    pieces = [Piece("User: Hello Assistant:", False), Piece(" World", True), Piece(" hello", False)]
    [(ids, flags)] = encode_pieces(tokenizer, [pieces], bos=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁user:", "▁hello", "▁assistant:", "▁world", "▁hello"]
    assert flags == [False, False, False, True, False]


def test_a_token_that_cannot_be_cut_is_learned_with_the_answer() -> None:
    # "ab" is one word here; cut in two, its parts would decode with a space between
    [(ids, flags)] = encode_pieces(word_tokenizer(), [[Piece("hello a", False), Piece("b", True)]], bos=False)
    assert flags == [False, True] and len(ids) == 2


def test_slow_tokenizers_go_piece_by_piece() -> None:
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    template = choose_template(tokenizer, "simple")
    turns = [Message("user", "你好"), Message("assistant", "\n好 x")] * 2
    [(ids, flags)] = encode_pieces(tokenizer, [template.render(turns)], bos=False)
    assert trained_texts(tokenizer, ids, flags) == ["\n好 x</s>"] * 2


def test_a_slow_tokenizer_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ByT5Tokenizer()
    monkeypatch.setattr(ByT5Tokenizer, "decode", lambda self, ids, **_: str(len(ids)) + "<" * ids.count(10))
    monkeypatch.setattr(ByT5Tokenizer, "_tokenize", lambda self, text: [*list(text), "\x07"])
    with pytest.raises(UserError, match="use its fast version"):
        encode_pieces(tokenizer, [[Piece("a", False), Piece("b", True)]], bos=False)
