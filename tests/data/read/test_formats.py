"""Rows of every layout, by hand: what they mean, and what is said about those that mean nothing."""

from __future__ import annotations

import json

import pytest

from espalier.data.read.rows import parse_row
from espalier.data.records import BadRecord, LeftOut, Message, Record


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str, prefix: str = "") -> Message:
    return Message("assistant", text, prefix)


QA = (user("2+3=?"), said("5"))
TURNS = [{"role": "user", "content": "2+3=?"}, {"role": "assistant", "content": "5"}]
SHARED = [{"from": "human", "value": "2+3=?"}, {"from": "gpt", "value": "5"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"messages": json.dumps(TURNS)},
        {"messages": [TURNS[0], {"role": "assistant", "content": [{"type": "text", "text": "5"}]}]},
        {"conversations": SHARED},
        {"instruction": "2+3=?", "input": "", "output": "5"},
        {"instruction": "2+3=?", "input": None, "output": "5", "history": []},
        {"prompt": "2+3=?", "completion": "5"},
        {"prompt": [TURNS[0]], "completion": [TURNS[1]]},
        {"question": "2+3=?", "answer": "5"},
        {"prompt": "2+3=?", "chosen": "5", "rejected": "6"},
        {"instruction": "2+3=?", "output": ["5", "6"]},
        {"prompt": "2+3=?", "answers": [{"answer": "6", "score": 0}, {"answer": "5", "score": 1}]},
        {"messages": TURNS, "label": True},
    ],
)
def test_every_layout_gives_the_same_chat(row: dict) -> None:
    assert parse_row(row, "a:1", "chat") == Record.chat(QA, "a:1")


def test_alpaca_joins_input_and_reads_both_kinds_of_history() -> None:
    pairs = {
        "instruction": "Translate",
        "input": "树",
        "output": "tree",
        "history": [["hi", "hello"]],
        "system": "Be brief",
    }
    flat = pairs | {"history": ["hi", "hello"]}
    wanted = Record.chat(
        (Message("system", "Be brief"), user("hi"), said("hello"), user("Translate\n树"), said("tree")), "a:1"
    )
    assert parse_row(pairs, "a:1", "chat") == wanted
    assert parse_row(flat, "a:1", "chat") == wanted
    odd = parse_row(flat | {"history": ["hi"]}, "a:1", "chat")
    assert isinstance(odd, BadRecord) and odd.cause == "broken history"


PAIR = Record.preference((user("2+3=?"),), (said("5"),), (said("6"),), "a:1")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+3=?", "chosen": "5", "rejected": "6"},
        {"prompt": "2+3=?", "selected": "5", "rejected": "6"},
        {"prompt": [TURNS[0]], "chosen": [TURNS[1]], "rejected": [{"role": "assistant", "content": "6"}]},
        {"prompt": "2+3=?", "chosen": TURNS[1], "rejected": {"role": "assistant", "content": "6"}},
        {"prompt": "2+3=?", "chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "6"}]},
        {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "6"}]},
        {"instruction": "2+3=?", "input": "", "output": ["5", "6"]},
        {"instruction": "2+3=?", "input": "", "chosen": "5", "rejected": "6"},
        {"conversations": [SHARED[0]], "chosen": "5", "rejected": "6"},
        {"conversations": [SHARED[0]], "chosen": SHARED[1], "rejected": {"from": "gpt", "value": "6"}},
        {"system": "", "history": [], "question": "2+3=?", "response_chosen": "5", "response_rejected": "6"},
        {"question": "2+3=?", "response_chosen": "5", "response_rejected": "6"},
        {"chosen": "\n\nHuman: 2+3=?\n\nAssistant: 5", "rejected": "\n\nHuman: 2+3=?\n\nAssistant: 6"},
    ],
)
def test_every_layout_gives_the_same_pair(row: dict) -> None:
    assert parse_row(row, "a:1", "preference") == PAIR
    assert parse_row(row, "a:1", "prompt") == Record("prompt", (user("2+3=?"),), (), "a:1")
    assert parse_row(row, "a:1", "ranking") == Record.ranking(
        PAIR.prompt, (((said("5"),), 1.0), ((said("6"),), 0.0)), "a:1"
    )


def test_dialogues_that_part_early_share_only_what_is_equal() -> None:
    row = {
        "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nAssistant: B\n\nHuman: c\n\nAssistant: d",
    }
    pair = parse_row(row, "a:1", "preference")
    assert pair.kind == "preference"
    assert pair.prompt == (user("a"),)
    assert pair.answers[0].messages == (said("b"), user("c"), said("d"))
    assert pair.answers[1].messages == (said("B"), user("c"), said("d"))


def test_dialogues_that_part_at_a_question_share_up_to_the_answer_before_it() -> None:
    row = {
        "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: C\n\nAssistant: d",
    }
    pair = parse_row(row, "a:1", "preference")
    assert pair.kind == "preference" and pair.prompt == (user("a"),)


def test_a_ranking_is_sorted_and_keeps_its_prefix_out_of_the_answers() -> None:
    answers = [{"answer": "坏", "score": -1}, {"answer": "好", "score": 2.5}, {"answer": "差", "score": -1}]
    ranking = parse_row({"prompt": "评：", "prefix": "我说", "answers": answers}, "a:1", "preference")
    assert ranking.kind == "ranking"
    assert [
        (answer.messages[0].content, answer.messages[0].prefix, answer.score) for answer in ranking.answers
    ] == [
        ("好", "我说", 2.5),
        ("坏", "我说", -1.0),
        ("差", "我说", -1.0),
    ]
    prompt = parse_row({"prompt": "评：", "prefix": "我说", "answers": answers}, "a:1", "prompt")
    assert prompt.kind == "prompt" and prompt.prefix == "我说"


@pytest.mark.parametrize("label", [True, 1, "true", "True"])
def test_unpaired_answers_carry_their_label(label: object) -> None:
    good = parse_row({"messages": TURNS, "label": label}, "a:1", "unpaired")
    assert good == Record.unpaired(QA[:1], QA[1:], True, "a:1")
    bad = parse_row({"prompt": "2+3=?", "completion": "6", "label": False}, "a:1", "unpaired")
    assert bad == Record.unpaired(QA[:1], (said("6"),), False, "a:1")


def test_prompts_find_their_reference_under_its_names() -> None:
    for row in (
        {"prompt": "2+3=?", "reference": "5"},
        {"question": "2+3=?", "answer": "5"},
        {"messages": TURNS, "ground_truth": 5},
        {"instruction": "2+3=?", "reference": "5"},
    ):
        assert parse_row(row, "a:1", "prompt") == Record("prompt", (user("2+3=?"),), (), "a:1", reference="5")
    assert parse_row({"instruction": "2+3=?"}, "a:1", "prompt") == Record(
        "prompt", (user("2+3=?"),), (), "a:1"
    )


def test_text_tools_and_renamed_columns() -> None:
    assert parse_row({"content": "春眠"}, "a:1", "text") == Record.document("春眠", "a:1")
    assert parse_row({"body": "春眠"}, "a:1", "text", columns={"text": "body"}) == Record.document(
        "春眠", "a:1"
    )
    chat = parse_row({"q": "2+3=?", "a": "5"}, "a:1", "chat", columns={"prompt": "q", "completion": "a"})
    assert chat == Record.chat(QA, "a:1")
    called = [
        *SHARED[:1],
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "5"},
        SHARED[1],
    ]
    chat = parse_row({"conversations": called, "tools": '[{"name": "add"}]'}, "a:1", "chat")
    assert chat.kind == "chat" and chat.tools == '[{"name": "add"}]'
    assert [message.role for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert parse_row({"conversations": SHARED, "tools": "[]"}, "a:1", "chat") == Record.chat(QA, "a:1")


def test_a_named_format_is_used_in_place_of_the_detected_one() -> None:
    row = {"messages": TURNS, "instruction": "1+1=?", "output": "2"}
    assert parse_row(row, "a:1", "chat") == Record.chat(QA, "a:1")
    assert parse_row(row, "a:1", "chat", format="alpaca") == Record.chat((user("1+1=?"), said("2")), "a:1")


@pytest.mark.parametrize(
    ("kind", "row", "cause", "words"),
    [
        ("chat", {"a": 1, "b": 2}, "missing column", ["`a`, `b`", "`messages`", "columns:"]),
        ("chat", {"instruction": "x", "output": ""}, "empty text", ["'output'", "fill it in"]),
        ("chat", {"instruction": "x", "output": " \n"}, "empty text", ["'output'"]),
        ("chat", {"instruction": "x", "output": 3.5}, "not text", ["a number (3.5)", "quotes"]),
        ("chat", {"instruction": "x", "output": None}, "empty text", ["null"]),
        ("chat", {"instruction": "x", "output": "a\ud83d"}, "broken character", ["'output'", "half a character"]),
        ("chat", {"instruction": "x"}, "no answer", ["`instruction`", "wanted"]),
        ("chat", {"instruction": "", "input": "", "output": "y"}, "empty prompt", ["'instruction' is empty"]),
        ("chat", {"messages": []}, "empty messages", ["at least one turn"]),
        ("chat", {"messages": "hello"}, "not messages", ["text", "{role, content}"]),
        ("chat", {"messages": "[{"}, "broken JSON", ["'messages'"]),
        ("chat", {"messages": [{"x": 1}]}, "not messages", ["turn 1", "['x']"]),
        ("chat", {"messages": [{"role": "king", "content": "x"}]}, "unknown role", ["'king'", "assistant"]),
        ("chat", {"messages": TURNS[:1]}, "no answer", ["`messages`"]),
        ("chat", {"messages": [TURNS[1]]}, "odd role order", ["turn 1", "first"]),
        ("chat", {"messages": [*TURNS, TURNS[1]]}, "odd role order", ["turn 3", "alternate"]),
        ("chat", {"messages": [TURNS[0], {"role": "assistant", "content": ""}]}, "empty text", ["turn 2"]),
        ("chat", {"messages": [TURNS[0], {"role": "assistant", "content": 7}]}, "not text", ["turn 2", "(7)"]),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image"}]}, TURNS[1]]}, "not text", ["only text"]),
        ("chat", {"conversations": SHARED, "tools": "[{"}, "broken JSON", ["'tools'"]),
        ("chat", {"prompt": "x", "completion": "y", "history": "z"}, "broken history", ["pairs"]),
        ("text", {"body": "x"}, "missing column", ["`body`", "`text`"]),
        ("text", {"text": ["x"]}, "not text", ["a list"]),
        ("preference", {"messages": TURNS}, "no pair", ["`messages`", "`chosen`"]),
        ("preference", {"chosen": "x", "rejected": "y"}, "missing column", ["`prompt`"]),
        ("preference", {"prompt": "x", "chosen": "y", "rejected": ""}, "empty text", ["'rejected'"]),
        ("preference", {"instruction": "x", "output": ["a", "b", "c"]}, "broken pair", ["3", "[accepted, rejected]"]),
        ("preference", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}, "no common prompt", ["one prompt"]),
        ("preference", {"prompt": "z", "chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "6"}]}, "two prompts", ["does not contain"]),
        ("preference", {"prompt": "x", "answers": []}, "broken ranking", ["answers with scores"]),
        ("preference", {"prompt": "x", "answers": [{"answer": "y", "score": "1"}, {"answer": "z", "score": 2}]}, "broken ranking", ["answer 1", "without quotes"]),
        ("preference", {"prompt": "x", "answers": [{"answer": "y", "score": float("nan")}, {"answer": "z", "score": 2}]}, "broken ranking", ["finite"]),
        ("unpaired", {"messages": TURNS}, "missing column", ["`label`"]),
        ("unpaired", {"messages": TURNS, "label": "yes"}, "broken label", ["true or false"]),
        ("prompt", {"prompt": 5}, "not messages", ["a number (5)"]),
        ("prompt", {"prompt": "x", "reference": {"a": 1}}, "not text", ["'reference'"]),
        ("prompt", {"messages": [{"role": "system", "content": "x"}]}, "no question", ["system", "user turn"]),
        ("chat", [1, 2], "not an object", ["named columns"]),
    ],
)  # fmt: skip
def test_a_bad_row_says_what_is_wrong_and_what_to_do(
    kind: str, row: dict, cause: str, words: list[str]
) -> None:
    bad = parse_row(row, "data.jsonl:7", kind)
    assert isinstance(bad, BadRecord), bad
    assert bad.cause == cause, bad
    assert str(bad).startswith("data.jsonl:7: ")
    for word in words:
        assert word in bad.reason


def test_a_column_that_is_renamed_but_absent_is_named() -> None:
    bad = parse_row({"q": "x"}, "a:1", "prompt", columns={"prompt": "question_text"})
    assert isinstance(bad, BadRecord) and "'question_text'" in bad.reason and "`q`" in bad.reason


def test_rows_that_teach_nothing_are_left_out_with_their_cause() -> None:
    equal = parse_row({"prompt": "x", "chosen": "y", "rejected": "y"}, "a:1", "preference")
    assert equal == LeftOut("a:1", "chosen equals rejected")
    flat = {"prompt": "x", "answers": [{"answer": "y", "score": 1}, {"answer": "z", "score": 1.0}]}
    assert parse_row(flat, "a:1", "preference") == LeftOut("a:1", "all answers score the same")
    false = parse_row({"messages": TURNS, "label": False}, "a:1", "chat")
    assert isinstance(false, LeftOut) and "label" in false.cause


def test_a_ranking_of_one_answer_serves_as_chat_and_makes_no_pair() -> None:
    row = {"prompt": "x", "prefix": "答：", "answers": [{"answer": "y", "score": 1}]}
    chat = parse_row(row, "a:1", "chat")
    assert chat.kind == "chat" and (chat.messages[1].prefix, chat.messages[1].content) == ("答：", "y")
    for kind in ("preference", "ranking"):
        outcome = parse_row(row, "a:1", kind)
        assert isinstance(outcome, LeftOut) and outcome.cause == "only one answer, so no pair"


def test_verl_rows_are_prompts_with_their_truth() -> None:
    row = {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": "2+3=?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "5"},
        "extra_info": {"index": 0},
    }
    prompt = parse_row(row, "a.parquet:1", "prompt")
    assert prompt.kind == "prompt" and (prompt.messages[0].content, prompt.reference) == ("2+3=?", "5")


def test_a_question_keeps_the_passage_it_is_about() -> None:
    chat = parse_row({"context": "春天来了。", "question": "什么来了？", "answer": "春天"}, "a:1", "chat")
    assert chat.kind == "chat" and chat.messages[0].content == "春天来了。\n什么来了？"


def test_pairs_of_input_and_target_are_chats() -> None:
    chat = parse_row({"input": "是或否？", "target": "是", "type": "nli"}, "a:1", "chat")
    assert chat.kind == "chat" and [turn.content for turn in chat.messages] == ["是或否？", "是"]
