"""Calls of tools in an answer, however it is cut, and told to a client."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("fastapi")

from espalier.data.records import Message
from espalier.errors import UserError
from espalier.models.tokenizers.new_tokenizer import CHATML
from espalier.serve.http.answering import ChatChoice
from espalier.serve.http.asking import ChatQuestion, chat_question, conversation
from espalier.serve.http.bodies import ChatBody
from espalier.serve.http.errors import Refusal
from espalier.serve.http.tools import Calls
from espalier.serve.model import ServedModel
from espalier.serve.requests import Request
from espalier.serve.settings import AnswerSettings

CALL = '{"name": "add", "arguments": {"a": 2, "字": "<tool_call>"}}'


def said(text: str, size: int) -> tuple[str, list[tuple[str, dict[str, object]]]]:
    calls = Calls({"add", "now"})
    shown = "".join(calls.feed(text[at : at + size]) for at in range(0, len(text), size))
    rest, found = calls.end()
    assert len({call["id"] for call in found}) == len(found)
    return shown + rest, [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in found]


ADD = ("add", {"a": 2, "字": "<tool_call>"})


@pytest.mark.parametrize("size", [1, 2, 7, 400])
@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        (f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>", "Let me see.\n", [ADD]),
        ('<tool_call>{"name":"now"}</tool_call>\n<tool_call>{"name":"now"}</tool_call>', "", [("now", {})] * 2),
        ('<tool_call>{"name":"now"}', "", [("now", {})]),
        (CALL.replace("arguments", "parameters"), "", [ADD]),
        (f"[{CALL}, {CALL}]", "", [ADD, ADD]),
        ('{"name": "rm", "arguments": {}}', '{"name": "rm", "arguments": {}}', []),
        ('<tool_call>{"name": "rm"}</tool_call> x', '<tool_call>{"name": "rm"}</tool_call> x', []),
        ("<tool_call>{broken", "<tool_call>{broken", []),
        ('{"a": 1}', '{"a": 1}', []),
        ("a < b <tool", "a < b <tool", []),
    ],
)  # fmt: skip
def test_calls_are_told_apart_from_text(text: str, shown: str, calls: list[object], size: int) -> None:
    assert said(text, size) == (shown, calls)


def test_a_choice_with_calls_says_so() -> None:
    question = ChatQuestion(Request((1,), AnswerSettings(), frozenset()), False, frozenset({"add"}))
    choice = ChatChoice(question)
    deltas = choice.feed(f"<think>hm</think>Yes. <tool_call>{CALL}</tool_call>")
    last, reason = choice.end("stop")
    assert deltas == [{"reasoning_content": "hm"}, {"content": "Yes. "}] and reason == "tool_calls"
    ((call,),) = [delta["tool_calls"] for delta in last]
    assert call["index"] == 0 and call["type"] == "function" and call["function"]["name"] == "add"
    choice = ChatChoice(question)
    choice.feed("no call")
    assert choice.end("length")[1] == "length"


TOOLS_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% endif %}"
    "{% for call in message.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Sums.", "parameters": {"type": "object"}},
}


def test_tools_their_calls_and_results_stand_in_the_prompt(served: ServedModel) -> None:
    served.tokenizer.chat_template = TOOLS_TEMPLATE
    again = ServedModel("tools", _Opened(served))  # type: ignore[arg-type]
    turns = [
        {"role": "user", "content": "2+3?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "five"},
    ]  # fmt: skip
    body = ChatBody.model_validate({"messages": turns, "tools": [TOOL], "max_tokens": 5})
    question = chat_question(again, body, 100)
    text = again.tokenizer.decode(question.request.ids)
    assert question.tools == {"add"}
    assert "Sums." in text and '"b": 3' in text and "five" in text
    none = ChatBody.model_validate(
        {"messages": turns, "tools": [TOOL], "tool_choice": "none", "max_tokens": 5}
    )
    assert "Sums." not in again.tokenizer.decode(chat_question(again, none, 100).request.ids)
    again.close()


class _Opened:
    """The model of another, under its tokenizer of now."""

    def __init__(self, served: ServedModel) -> None:
        self.lm, self.required_tokenizer, self._model = served.model.lm, served.tokenizer, served.model

    def tree_model(self) -> object:
        return self._model


def test_a_template_without_a_place_for_tools_refuses_them(served: ServedModel) -> None:
    assert served.tokenizer.chat_template == CHATML
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": "2+3?"}], "tools": [TOOL]})
    with pytest.raises(Refusal, match="does not show the tools"):
        chat_question(served, body, 100)
    with pytest.raises(UserError):
        served.prompt(conversation([{"role": "user", "content": "2+3?"}]), json.dumps([TOOL]))
    assert served.prompt([Message("user", "2+3?")])
