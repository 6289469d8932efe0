"""Calls in a template's own form, thoughts where it has a place, and which turns are learned."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from espalier.data.encode.templates import TokenizerTemplate, choose_template
from espalier.data.encode.tokenise import Encoder, encode_all
from espalier.data.read.rows import parse_row
from espalier.data.records import Message, Record
from espalier.errors import UserError
from tests.data.encode.shapes import LLAMA3, QWEN3, R1

CALL = {"name": "weather", "arguments": {"city": "北京"}}
TOOLS = json.dumps([{"name": "weather", "parameters": {}}])
ROW = {
    "messages": [
        {"role": "user", "content": "北京？"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {**CALL, "arguments": '{"city": "北京"}'}}]},
        {"role": "tool", "content": "21", "tool_call_id": "c1"},
        {"role": "assistant", "content": "21 度"},
    ],
    "tools": TOOLS,
}  # fmt: skip
# Calls only where there is no content at all, and their arguments as JSON text.
TEXT_ARGUMENTS = (
    "{{ tools | tojson if tools else '' }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is defined %}{{ m.content }}{% else %}{% for c in m.tool_calls %}{{ c.function.name + ':' + "
    "c.function.arguments }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trained(pieces: Any) -> list[str]:
    return [piece.text for piece in pieces if piece.trained]


def read(row: Any) -> Record:
    record = parse_row(row, "a.jsonl:3", "chat")
    assert isinstance(record, Record), record
    return record


@pytest.fixture
def tokenizer(aquila: Any) -> Any:
    return copy.copy(aquila)


@pytest.mark.parametrize(
    ("template", "call"),
    [
        (QWEN3, '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call><|im_end|>'),
        (LLAMA3, '{"name": "weather", "parameters": {"city": "北京"}}<|eot_id|>'),
        (TEXT_ARGUMENTS, 'weather:{"city": "北京"}<|im_end|>'),
    ],
)
def test_a_call_is_written_by_the_models_own_template(tokenizer: Any, template: str, call: str) -> None:
    tokenizer.chat_template = template
    record = read(ROW)
    assert trained(TokenizerTemplate(tokenizer).render(record.messages, tools=record.tools))[0] == call
    called = [
        ROW["messages"][0],
        {"role": "function_call", "content": json.dumps(CALL)},
        *ROW["messages"][2:],
    ]
    as_text = read({**ROW, "messages": called})
    assert trained(TokenizerTemplate(tokenizer).render(as_text.messages, tools=as_text.tools))[0] == call


def test_calls_without_a_form_are_refused_or_stay_the_text_that_they_were(tokenizer: Any) -> None:
    template = TokenizerTemplate(tokenizer)
    record = read(ROW)
    with pytest.raises(UserError, match="does not show the tools"):
        template.render(record.messages, tools=record.tools)
    with pytest.raises(
        UserError, match=r"no place for the calls of turn 2 .*'weather' would be lost.*template: simple"
    ):
        template.render(record.messages)
    text = json.dumps(CALL, ensure_ascii=False)
    messages = read({"messages": [ROW["messages"][0], {"role": "function_call", "content": text}]}).messages
    assert trained(template.render(messages)) == [f"{text}<|im_end|>"]
    for name in ("simple", "chatml"):
        pieces = choose_template(tokenizer, name).render(record.messages, tools=record.tools)
        assert trained(pieces)[0].startswith('{"name": "weather", "arguments": {"city": "北京"}}')


def test_thoughts_without_a_place_are_refused_with_the_place_of_the_record(tokenizer: Any) -> None:
    record = read(
        {
            "messages": [
                {"role": "user", "content": "1+1?"},
                {"role": "assistant", "content": "2", "thinking": "one more"},
            ]
        }
    )
    with pytest.raises(
        UserError, match=r"^a.jsonl:3: .*no place for the thoughts of turn 2 .*<think>…</think>"
    ):
        encode_all([record], Encoder(tokenizer, choose_template(tokenizer), 1000))


@pytest.mark.parametrize("answer", ["<think>想</think>2", "<think>\n想\n</think>\n\n2", None])
def test_rewritten_thoughts_end_once(tokenizer: Any, answer: str | None) -> None:
    said = Message("assistant", answer) if answer else Message("assistant", "2", thoughts="想")
    asked = Message("user", "1+1?")
    tokenizer.chat_template = QWEN3
    assert trained(TokenizerTemplate(tokenizer).render([asked, said])) == [
        "<think>\n想\n</think>\n\n2<|im_end|>"
    ]
    with pytest.raises(UserError, match=r"leaves out its thoughts \('想'\).*mask_history: true.*--as turns"):
        TokenizerTemplate(tokenizer).render([asked, said, asked, said])
    last = trained(TokenizerTemplate(tokenizer).render([asked, said, asked, said], train_from=3))
    assert last == ["<think>\n想\n</think>\n\n2<|im_end|>"]
    tokenizer.chat_template = R1.replace("eos_token", "'<|im_end|>'")
    pieces = TokenizerTemplate(tokenizer).render([asked, said, asked, said], train_from=3)
    assert trained(pieces) == [
        (answer or "<think>\n想\n</think>\n\n2").removeprefix("<think>").removeprefix("\n") + "<|im_end|>"
    ]
    assert (
        pieces[0]
        .text.replace("\n\n2", "2")
        .endswith("<|Assistant|>2<|im_end|><|User|>1+1?<|Assistant|><think>\n")
    )
    with pytest.raises(UserError, match=r"before turn 2.*answers that begin with their thoughts"):
        TokenizerTemplate(tokenizer).render([asked, Message("assistant", "2")])


CHAT = Record.chat(
    tuple(Message(role, text) for role, text in [("system", "S"), ("user", " q "), ("assistant", "a"), ("user", "r"), ("assistant", "b")]),
    "a.jsonl:1",
)  # fmt: skip


def learned(tokenizer: Any, record: Record, **options: bool) -> str:
    [tree], _ = encode_all([record], Encoder(tokenizer, choose_template(tokenizer), 1000, **options))
    [(tokens, flags)] = tree.paths()
    return str(tokenizer.decode(tokens[flags]))


def test_which_turns_are_learned(tokenizer: Any) -> None:
    assert learned(tokenizer, CHAT) == "a<|im_end|>b<|im_end|>"
    assert learned(tokenizer, CHAT, mask_history=True) == "b<|im_end|>"
    whole = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n q <|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"  # fmt: skip
    assert learned(tokenizer, CHAT, train_on_prompt=True) == whole.removeprefix(
        "<|im_start|>"
    )  # which has no parent
    turns = [
        {"role": m.role, "content": m.content, "weight": 0 if m.content == "a" else None}
        for m in CHAT.messages
    ]
    weighed = read({"messages": turns})
    assert learned(tokenizer, weighed) == "b<|im_end|>"
    with pytest.raises(UserError, match=r"a.jsonl:3: .*only read.*train_on_prompt"):
        learned(tokenizer, weighed, train_on_prompt=True)


def test_what_is_left_to_the_template_is_counted(tokenizer: Any) -> None:
    tokenizer.chat_template = QWEN3
    thinking = [("user", "q", ""), ("assistant", "a", "想"), ("user", "r", ""), ("assistant", "b", "想")]
    chat = Record.chat(
        tuple(Message(role, text, thoughts=thoughts) for role, text, thoughts in thinking), "a.jsonl:1"
    )
    _, account = encode_all([chat], Encoder(tokenizer, choose_template(tokenizer), 1000, mask_history=True))
    assert account == {"left to the template: thoughts of turns that are only read, which it leaves out": 1}
    tokenizer.chat_template = LLAMA3
    _, account = encode_all([CHAT], Encoder(tokenizer, choose_template(tokenizer), 1000))
    assert account == {"left to the template: white space at the ends of turns, which it trims": 1}
    ends = read({"messages": [*ROW["messages"][:1], ROW["messages"][3], *ROW["messages"][:1]]})
    _, account = encode_all([ends], Encoder(tokenizer, choose_template(tokenizer), 1000))
    assert account == {"cut: turns at the end that no answer follows": 1}
