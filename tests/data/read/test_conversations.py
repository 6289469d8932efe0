"""Conversations as people have them: calls of tools, thoughts, weights, questions at the end, other projects' columns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from espalier.corpora.prepare.shape import row_of
from espalier.data.read.formats import UNANSWERED, own_kind
from espalier.data.read.rows import parse_row
from espalier.data.records import BadRecord, LeftOut, Message, Record

ASKED = {"role": "user", "content": "北京？"}
CALL = {"name": "weather", "arguments": {"city": "北京"}}
FUNCTION = {"type": "function", "function": CALL}
RESULT = {"role": "tool", "content": "21"}
DONE = {"role": "assistant", "content": "21 度"}


def read(row: Any, kind: str = "chat") -> Record:
    record = parse_row(row, "a:1", kind)
    assert isinstance(record, Record), record
    return record


def turns(*told: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, text) for role, text in told)


@pytest.mark.parametrize(
    ("called", "content", "calls"),
    [
        ({"role": "assistant", "content": "我查。", "tool_calls": [FUNCTION]}, "我查。", [FUNCTION]),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "c1", **FUNCTION}]}, "", [{"id": "c1", **FUNCTION}]),
        ({"role": "assistant", "content": "", "tool_calls": [FUNCTION, FUNCTION]}, "", [FUNCTION, FUNCTION]),
        ({"role": "assistant", "content": None, "function_call": {**CALL, "arguments": '{"city": "北京"}'}}, "", [FUNCTION]),
        ({"from": "gpt", "value": "我查。", "tool_calls": json.dumps([CALL])}, "我查。", [FUNCTION]),
    ],
)  # fmt: skip
def test_calls_of_tools_are_kept_beside_the_text(called: dict, content: str, calls: list) -> None:
    asked = ASKED if "role" in called else {"from": "human", "value": "北京？"}
    column = "messages" if "role" in called else "conversations"
    told = read({column: [asked, called, RESULT, DONE]}).messages[1]
    assert (told.content, json.loads(told.calls), told.calls_as_text) == (content, calls, False)


def test_a_turn_that_is_a_call_as_text_is_a_call_and_keeps_its_text() -> None:
    text = json.dumps(CALL)
    rows = [
        {"conversations": [{"from": "human", "value": "北京？"}, {"from": "function_call", "value": text}]},
        {"messages": [ASKED, {"role": "tool_call", "content": text}]},
    ]
    for row in rows:
        told = read(row).messages[1]
        assert (told.content, json.loads(told.calls), told.calls_as_text) == (text, [FUNCTION], True)
    plain = read({"messages": [ASKED, {"role": "function_call", "content": "print(1)"}]}).messages[1]
    assert (plain.content, plain.calls) == ("print(1)", "")


def test_calls_in_turns_of_their_own_join_the_turn_before_them() -> None:
    call = {"role": "tool_call", "content": json.dumps(CALL)}
    text = {"role": "assistant", "content": "我查。"}
    several = read({"messages": [ASKED, call, call, RESULT, {**RESULT, "role": "tool_response"}, DONE]})
    assert [turn.role for turn in several.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert json.loads(several.messages[1].calls) == [FUNCTION, FUNCTION]
    beside = read({"messages": [ASKED, text, call, {**RESULT, "role": "ipython"}, DONE]}).messages
    assert (beside[1].content, json.loads(beside[1].calls)) == ("我查。", [FUNCTION])
    assert beside[2] == Message("tool", "21")


def test_chatglm3s_tool_turn_is_a_call_and_its_result() -> None:
    tool = {"role": "tool", "name": "weather", "parameters": {"city": "北京"}, "observation": {"temp": 21}}
    thought = {"role": "assistant", "content": "需要查天气。"}
    for before in ([], [thought]):
        row = {"conversations": [ASKED, *before, tool, DONE], "tools": [{"name": "weather"}]}
        _, called, result, _ = read(row).messages
        assert (called.content, json.loads(called.calls)) == ("需要查天气。" if before else "", [FUNCTION])
        assert (result.content, result.name) == ('{"temp": 21}', "weather")


def test_chatglm3s_call_in_python_is_a_call() -> None:
    code = "```python\ntool_call(city='北京')\n```"
    forms: list[dict[str, Any]] = [
        {"role": "assistant", "metadata": "weather", "content": f" {code}"},
        {"role": "assistant", "content": f"weather\n {code}"},
        {
            "role": "assistant",
            "content": f"weather\n {code}",
            "function_call": {"name": "weather", "arguments": {"city": "北京"}},
        },
    ]
    for turn in forms:
        for before in ([], [{"role": "assistant", "metadata": "", "content": "我查。"}]):
            row = {"messages": [ASKED, *before, turn, {"role": "observation", "content": "21"}, DONE]}
            messages = read(row).messages
            called = messages[-3]
            assert json.loads(called.calls) == [FUNCTION] and messages[-2] == Message("tool", "21")
            if before:
                assert (called.content, called.calls_as_text, len(messages)) == ("我查。", False, 4)
    odd = {"role": "assistant", "metadata": "interpreter", "content": "```python\nprint(2)\n```"}
    bad = parse_row({"messages": [ASKED, odd]}, "a:1", "chat")
    assert (
        isinstance(bad, BadRecord)
        and "turn 2 has the metadata 'interpreter', which in ChatGLM3" in bad.reason
    )
    for text in (
        "weather\n ```python\ntool_call(2)\n```",
        "weather\n ```python\ntool_call(a=f())\n```",
        "see\n ```python\nx\n```",
    ):
        assert read({"messages": [ASKED, {"role": "assistant", "content": text}]}).messages[1] == Message(
            "assistant", text
        )


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_are_kept_apart(key: str) -> None:
    told = read({"messages": [ASKED, {**DONE, key: "查过了。"}]}).messages[1]
    assert (told.thoughts, told.content) == ("查过了。", "21 度")
    assert read({"messages": [ASKED, {**DONE, key: None}]}) == read({"messages": [ASKED, DONE]})


@pytest.mark.parametrize(
    ("off", "on"),
    [
        ({"weight": 0}, {"weight": 1}),
        ({"loss": False}, {}),
        ({"train": False}, {"train": True, "loss": None}),
    ],
)
def test_a_turn_that_is_only_read_says_so(off: dict, on: dict) -> None:
    told = read({"messages": [{**ASKED, **off}, {**DONE, **off}, ASKED, {**DONE, **on}]}).messages
    assert [message.trained for message in told] == [True, False, True, True]
    assert row_of(Record.chat(told))["messages"][1] == {**DONE, "weight": 0}


def test_what_a_record_holds_is_written_and_read_again() -> None:
    row = {"messages": [ASKED, {"role": "assistant", "content": "我查。", "reasoning_content": "想", "tool_calls": [{"id": "c1", **FUNCTION}]},
                        {**RESULT, "name": "weather", "tool_call_id": "c1"}, {**DONE, "weight": 0}]}  # fmt: skip
    assert row_of(read(row)) == row
    assert read(row_of(read(row))) == read(row)


def test_a_question_at_the_end_is_cut_and_told() -> None:
    for end in ([ASKED], [ASKED, {"role": "assistant", "content": "", "tool_calls": [FUNCTION]}, RESULT]):
        record = read({"messages": [ASKED, DONE, *end]})
        kept = len(end) if len(end) > 1 else 2
        assert record.notes == (UNANSWERED,)
        assert record.messages[-1].role == "assistant" and len(record.messages) == (
            2 if len(end) == 1 else kept + 1
        )
    assert read({"messages": [ASKED, DONE, ASKED]}, "prompt").messages == turns(
        ("user", "北京？"), ("assistant", "21 度"), ("user", "北京？")
    )
    unanswered = parse_row({"messages": [ASKED]}, "a:1", "chat")
    assert isinstance(unanswered, BadRecord) and unanswered.cause == "no answer"


def test_columns_that_hold_null_are_absent() -> None:
    empty = dict.fromkeys(
        (
            "messages",
            "conversations",
            "prompt",
            "instruction",
            "chosen",
            "rejected",
            "label",
            "tools",
            "system",
        )
    )
    assert read({**empty, "messages": [ASKED, DONE]}) == read({"messages": [ASKED, DONE]})
    assert read({**empty, "prompt": "北京？", "completion": "21 度"}) == read({"messages": [ASKED, DONE]})
    assert read({**empty, "text": "北京"}, "text") == Record.document("北京", "a:1")
    bad = parse_row({**empty}, "a:1", "chat")
    assert isinstance(bad, BadRecord) and "`prompt` (null)" in bad.reason


def test_the_class_of_something_is_no_judgement() -> None:
    row = {"instruction": "好评？", "output": "差评", "label": 0}
    assert read(row).messages == turns(("user", "好评？"), ("assistant", "差评"))
    assert own_kind(row) == "chat"
    assert read(row, "unpaired").answers[0].label is False
    judged = parse_row({**row, "label": False}, "a:1", "chat")
    assert isinstance(judged, LeftOut) and judged.cause.startswith("label is false")


PAIR = Record.preference(
    turns(("user", "1+1?")), turns(("assistant", "2")), turns(("assistant", "3")), source="a:1"
)
HUMAN, RIGHT, WRONG = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}, {"role": "assistant", "content": "3"}  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [HUMAN], "chosen": RIGHT, "rejected": WRONG},
        {"messages": [HUMAN], "chosen": "2", "rejected": "3"},
        {"messages": [HUMAN, RIGHT], "chosen": "2", "rejected": "3"},
        {"messages": [HUMAN, RIGHT], "rejected_response": "3"},
        {"messages": [HUMAN, RIGHT], "rejected_messages": [HUMAN, WRONG]},
        {"query": "1+1?", "response": "2", "rejected_response": "3"},
        {"prompt": "\n\nHuman: 1+1? \n\nAssistant:", "response": "2", "chosen": " 2", "rejected": " 3"},
        {"prompt": "Human: 1+1? Assistant:", "chosen": " 2", "rejected": " 3"},
        {"prompt": "\n\n人类：1+1?\n\n助手：", "chosen": "2", "rejected": "3"},
        {"prompt": "\n\nHuman: 1+1?\n\nAssistant:", "chosen": "\n\nHuman: 1+1?\n\nAssistant: 2", "rejected": "\n\nHuman: 1+1?\n\nAssistant: 3"},
        {"chosen": "\n\n人类：1+1?\n\n助手：2", "rejected": "\n\n人类：1+1?\n\n助手：3"},
    ],
)  # fmt: skip
def test_pairs_of_other_projects(row: dict) -> None:
    assert parse_row(row, "a:1", "preference") == PAIR
    assert read(row).messages == turns(("user", "1+1?"), ("assistant", "2"))
    assert read(row, "prompt").messages == turns(("user", "1+1?"))


def test_prompts_with_speakers_marks_become_turns() -> None:
    prompt = '\n\nHuman: 1+1?\n\nAssistant: It says "Human: two"\nHuman: or\n\nHuman: So? \n\nAssistant:'
    row = {"prompt": prompt, "response": " 2", "chosen": " 2", "rejected": " 3"}
    wanted = turns(
        ("user", "1+1?"),
        ("assistant", 'It says "Human: two"\nHuman: or'),
        ("user", "So?"),
        ("assistant", "2"),
    )
    assert read(row).messages == wanted
    assert read({"prompt": "What does Human: mean?", "completion": " x"}).messages[1].content == " x"


def test_xtuners_pairs() -> None:
    row = {"conversation": [{"system": "简短", "input": "1+1?", "output": "2"}, {"input": "好", "output": "嗯", "output_with_loss": False}]}  # fmt: skip
    told = read(row).messages
    assert told[:3] == turns(("system", "简短"), ("user", "1+1?"), ("assistant", "2"))
    assert [message.trained for message in told] == [True, True, True, True, False]


def test_a_chat_from_a_ranking_is_its_best_answer_if_that_is_any_good() -> None:
    def row(*scores: float) -> dict[str, Any]:
        return {
            "prompt": "1+1?",
            "answers": [{"answer": f"a{n}", "score": score} for n, score in enumerate(scores)],
        }

    assert read(row(0, 2, 1)).messages[-1].content == "a1"
    for scores in ((0, 0), (-1, 0), (0,)):
        assert parse_row(row(*scores), "a:1", "chat") == LeftOut("a:1", "no answer scores above 0")
    assert len(read(row(-1, 0), "ranking").answers) == 2


@pytest.mark.parametrize(
    ("turn", "cause", "words"),
    [
        ({"role": "assistant", "content": "x", "tool_calls": [{"function": {"arguments": "{}"}}]}, "broken tool call", "without a function name"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"function": {**CALL, "arguments": "{"}}]}, "broken tool call", "broken JSON"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"function": {**CALL, "arguments": "[1]"}}]}, "broken tool call", "wanted an object"),
        ({"role": "assistant", "content": "x", "reasoning_content": ["y"]}, "not text", "reasoning_content"),
        ({"role": "assistant", "content": "x", "weight": 0.5}, "odd weight", "wanted 1 or true"),
        ({"role": "assistant", "content": "x", "weight": 0, "train": True}, "odd weight", "different things"),
    ],
)  # fmt: skip
def test_a_turn_that_cannot_be_read_says_why(turn: dict, cause: str, words: str) -> None:
    bad = parse_row({"messages": [ASKED, turn]}, "a:1", "chat")
    assert isinstance(bad, BadRecord) and (bad.cause, words in bad.reason) == (cause, True), bad


def test_what_would_train_a_users_turn_is_refused() -> None:
    bad = parse_row({"messages": [{**ASKED, "train": True}, DONE]}, "a:1", "chat")
    assert isinstance(bad, BadRecord) and "train_on_prompt" in bad.reason
    bad = parse_row(
        {"system": "a", "messages": [{"role": "system", "content": "b"}, ASKED, DONE]}, "a:1", "chat"
    )
    assert isinstance(bad, BadRecord) and bad.cause == "two system texts"
