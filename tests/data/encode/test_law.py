"""What is trained is what the model's own template renders, each token once, the end included; all else is refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import BertTokenizer

from espalier.data.encode.encoding import Piece, encode_pieces, joined
from espalier.data.encode.named_templates import forms
from espalier.data.encode.templates import TokenizerTemplate, choose_template
from espalier.data.records import Message
from espalier.errors import UserError
from espalier.models.load import load_tokenizer
from tests.data.encode.shapes import SHAPES, Shape

_WORDS = st.sampled_from(
    ["a", "春眠", " ", "\n", "  ", "\n\n", "😀", "|", "5", "<", "user", "x y", "é", '"', "{content}", "\t"]
)
_TEXTS = st.lists(_WORDS, min_size=1, max_size=5).map("".join)
SAID = _TEXTS.filter(str.strip)
TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "parameters": {}}}])


@st.composite
def answers(draw: Any) -> Message:
    """Plain ones, ones with thoughts in every form, ones that are only read."""
    content, trained = draw(SAID), draw(st.sampled_from([True, True, True, False]))
    form = draw(st.sampled_from(["plain", "plain", "apart", "{}", "{}\n\n", "\n{}\n"]))
    if form == "plain":
        return Message("assistant", content, trained=trained)
    thoughts = draw(SAID)
    if form == "apart":
        return Message("assistant", content, thoughts=thoughts, trained=trained)
    return Message("assistant", f"<think>{form.format(thoughts)}</think>{content}", trained=trained)


@st.composite
def calling(draw: Any) -> list[Message]:
    """An answer that calls tools, with or without a text beside it, and what they give."""
    arguments = {"city": draw(SAID), "days": draw(st.sampled_from([3, True, None, [1.5, "b"]]))}
    calls = [{"type": "function", "function": {"name": "weather", "arguments": arguments}}] * draw(
        st.integers(1, 2)
    )
    text = draw(st.one_of(st.just(""), SAID))
    called = Message(
        "assistant", text, calls=json.dumps(calls, ensure_ascii=False), trained=draw(st.booleans())
    )
    return [called, *[Message("tool", draw(_TEXTS)) for _ in calls]]


@st.composite
def conversations(draw: Any) -> tuple[list[Message], str | None]:
    messages = [Message("system", draw(st.one_of(st.just(""), _TEXTS)))] if draw(st.booleans()) else []
    tools = TOOLS if draw(st.sampled_from([True, False, False])) else None
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(SAID)))
        if tools:
            messages += draw(st.one_of(st.just([]), calling()))
        messages.append(draw(answers()))
    return messages, tools


@pytest.fixture(scope="module")
def bare(aquila: Any) -> Any:
    """A byte-level BPE in which white space joins with what follows it."""
    return aquila


def with_shape(bare: Any, shape: Shape) -> Any:
    made = type(bare)(
        tokenizer_object=bare.backend_tokenizer.__class__.from_str(bare.backend_tokenizer.to_str())
    )
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokens = [AddedToken(text, rstrip=text in shape.swallowing, special=True) for text in shape.specials]
    made.add_special_tokens({"additional_special_tokens": [one for one in tokens if one.content != "</s>"]})
    made.chat_template = shape.template
    return made


def as_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    turns = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thoughts:
            turn["reasoning_content"] = message.thoughts
        if message.calls:
            turn["tool_calls"] = json.loads(message.calls)
        turns.append(turn)
    return turns


def whole(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def check_ids(tokenizer: Any, pieces: Sequence[Piece], wanted: list[int]) -> None:
    """The ids are the template's own, unless a token would reach over the place where a generation begins."""
    if not tokenizer.is_fast:
        check_slow(tokenizer, pieces, wanted)
        return
    ((ids, flags),) = encode_pieces(tokenizer, [pieces], bos=False)

    def encoded(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    text = whole(pieces)
    borders = {len(whole(pieces[:at])) for at, piece in enumerate(pieces) if piece.trained}
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    over = {
        wanted[at]
        for at, (start, end) in enumerate(places)
        if any(start < border < end for border in borders)
    }
    learned_at = {at for at, (start, _) in enumerate(places) if is_learned(pieces, start)}
    flagged = {at for at, flag in enumerate(flags) if flag}
    if over - set(tokenizer.all_special_ids):  # a special token may swallow the white space behind it
        event("a token reaches over the beginning of an answer")
        cut = [token for piece in pieces for token in encoded(piece.text)]
        if tokenizer.decode(cut) not in (text, tokenizer.decode(encoded(text))):
            # Pieces that cannot be joined again stay one text; the token is learned with the answer that it begins.
            assert ids == encoded(text)
            touching = {
                at
                for at, (start, end) in enumerate(places)
                if any(is_learned(pieces, place) for place in range(start, end))
            }
            assert learned_at <= flagged <= touching
            return
        wanted = cut
    else:
        assert flagged == learned_at
    assert ids == wanted
    if tokenizer.decode(encoded(text)) != text:
        event("a vocabulary that cannot write all of the text")
        return
    runs: list[list[int]] = []
    for at, (token, flag) in enumerate(zip(ids, flags, strict=True)):
        if flag:
            if not (at and flags[at - 1]):
                runs.append([])
            runs[-1].append(token)
    learned = [piece.text for piece in pieces if piece.trained]
    for run, said in zip(runs, learned, strict=True):
        decoded = tokenizer.decode(run)
        assert decoded == said or (over and said.endswith(decoded) and not said.removesuffix(decoded).strip())


def is_learned(pieces: Sequence[Piece], place: int) -> bool:
    """Whether the character at a place of the whole text stands in a trained piece."""
    for piece in pieces:
        if place < len(piece.text):
            return piece.trained
        place -= len(piece.text)
    return False


def check_slow(tokenizer: Any, pieces: Sequence[Piece], wanted: list[int]) -> None:
    """Without places in the text: the pieces' own ids joined are the template's, else they are refused."""
    own = [tokenizer(piece.text, add_special_tokens=False).input_ids for piece in pieces]
    if [token for ids in own for token in ids] != wanted:
        event("pieces that are not the whole")
        with pytest.raises(UserError):
            encode_pieces(tokenizer, [pieces], bos=False)
        return
    flags = [piece.trained for piece, ids in zip(pieces, own, strict=True) for _ in ids]
    assert encode_pieces(tokenizer, [pieces], bos=False) == [(wanted, flags)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=conversations())
def test_what_is_trained_is_what_the_template_renders(
    bare: Any, name: str, told: tuple[list[Message], str | None]
) -> None:
    messages, tools = told
    shape = SHAPES[name]
    tokenizer = _made[name] = _made.get(name) or with_shape(bare, shape)
    plain = shape.plain(messages, tools)
    template = TokenizerTemplate(tokenizer)
    if plain is None:
        event(f"{name} refused")
        with pytest.raises(UserError, match=r"template"):
            template.render(messages, tools=tools)
        return
    event(f"{name} rendered")
    pieces = template.render(messages, tools=tools)
    wanted = joined([Piece(text, learned) for text, learned in plain])
    assert pieces == wanted
    functions = json.loads(tools) if tools else None
    if name != "r1":  # which is written as it is generated
        assert whole(pieces) == tokenizer.apply_chat_template(
            as_turns(messages), tools=functions, tokenize=False
        )
    check_ids(tokenizer, pieces, tokenizer(whole(pieces), add_special_tokens=False).input_ids)


_made: dict[str, Any] = {}


def with_all_marks(tokenizer: Any) -> Any:
    marks = [form.end for form in forms().values() if form.end]
    tokenizer.add_special_tokens(
        {"eos_token": "</s>", "additional_special_tokens": sorted({"<|im_start|>", *marks})}
    )
    return tokenizer


@pytest.fixture(scope="module", params=["aquila", "gpt2"])
def knows_all_marks(request: pytest.FixtureRequest) -> Any:
    return with_all_marks(copy.deepcopy(request.getfixturevalue(request.param)))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["simple", *forms()]), told=conversations())
def test_named_templates_train_every_answer_and_show_the_rest(
    knows_all_marks: Any, name: str, told: tuple[list[Message], str | None]
) -> None:
    check_named(knows_all_marks, name, *told)


def check_named(tokenizer: Any, name: str, messages: list[Message], tools: str | None) -> None:
    template = choose_template(tokenizer, name)
    learned = [message for message in messages if message.role == "assistant" and message.trained]
    if name not in ("simple", "qwen3") and any(message.thoughts for message in learned):
        with pytest.raises(UserError, match=r"thoughts of turn \d"):
            template.render(messages, tools=tools)
        return
    pieces = template.render(messages, tools=tools)
    answers = []
    for message in learned:
        thoughts = f"<think>\n{message.thoughts}\n</think>\n\n" if message.thoughts else ""
        calls = [call["function"] for call in json.loads(message.calls or "[]")]
        called = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False) if calls else ""
        text = "\n".join(part for part in (message.content, called) if part)
        answers.append(f"{thoughts}{text}{template.end_of_turn}")
    merged = joined([Piece(answer, True) for answer in answers])
    assert "".join(piece.text for piece in pieces if piece.trained) == "".join(piece.text for piece in merged)
    at = 0
    for message in messages:
        if message.role != "system":
            at = whole(pieces).index(message.content, at) + len(message.content)
    assert tools is None or tools in whole(pieces)
    check_ids(tokenizer, pieces, tokenizer(whole(pieces), add_special_tokens=False).input_ids)


OF_OTHERS = {"baichuan2": None, "glm_chinese_sp": None, "pangu": None, "qwen": None, "bert_base_chinese": "vocab.txt",
             "chinese_llama_sp": "chinese_sp.model"}  # fmt: skip
"""The other vocabularies of the real data; of a bare file, its name."""


@pytest.fixture(scope="module", params=OF_OTHERS)
def other(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Sentencepiece, tiktoken, WordPiece and words of jieba: each normalises, joins and loses in a way of its own."""
    folder, bare = shared / "data" / "tokenizers" / request.param, OF_OTHERS[request.param]
    if bare == "vocab.txt":
        return with_all_marks(BertTokenizer(vocab=str(folder / bare)))
    if bare is not None:
        made = tmp_path_factory.mktemp("llama")
        shutil.copy(folder / bare, made / "tokenizer.model")
        (made / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}', "utf-8")
        folder = made
    if request.param == "pangu":
        pytest.importorskip("jieba", reason="PanGu's words come from jieba")
    return with_all_marks(load_tokenizer(str(folder)))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["simple", *forms()]), told=conversations())
@pytest.mark.slow
def test_the_same_in_every_real_vocabulary(
    other: Any, name: str, told: tuple[list[Message], str | None]
) -> None:
    check_named(other, name, *told)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(SHAPES)), told=conversations())
@pytest.mark.slow
def test_own_templates_in_every_real_vocabulary(
    other: Any, name: str, told: tuple[list[Message], str | None]
) -> None:
    (messages, tools), shape = told, SHAPES[name]
    tokenizer = _copies[type(other), len(other)] = _copies.get((type(other), len(other))) or copy.deepcopy(
        other
    )
    tokens = [AddedToken(text, rstrip=text in shape.swallowing, special=True) for text in shape.specials]
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": tokens})
    tokenizer.chat_template = shape.template
    plain = shape.plain(messages, tools)
    if plain is None:
        with pytest.raises(UserError, match=r"template"):
            TokenizerTemplate(tokenizer).render(messages, tools=tools)
        return
    pieces = TokenizerTemplate(tokenizer).render(messages, tools=tools)
    assert pieces == joined([Piece(text, learned) for text, learned in plain])
    check_ids(tokenizer, pieces, tokenizer(whole(pieces), add_special_tokens=False).input_ids)


_copies: dict[Any, Any] = {}
