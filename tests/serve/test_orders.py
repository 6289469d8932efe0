"""What lines with a slash do, with questions from a list."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from espalier.data.records import Message
from espalier.errors import UserError
from espalier.screen import Screen, safe
from espalier.serve.kept import load_session
from espalier.serve.model import ServedModel
from espalier.serve.opening import ModelOpener
from espalier.serve.requests import EngineLimits
from espalier.serve.session import Session
from espalier.serve.settings import AnswerSettings
from espalier.serve.terminal.chat import Chat, talk
from espalier.serve.terminal.orders import obey


class Listed:
    """A person who says these lines."""

    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)

    def read(self) -> str | None:
        return next(self._lines, None)


def said(served: ServedModel, *lines: str, votes: Path = Path("votes.jsonl")) -> tuple[str, str, Chat]:
    """Standard output, standard error, and the chat as it ended."""
    settings = AnswerSettings(max_new_tokens=8, temperature=1.0, seed=1)
    out, notes = io.StringIO(), io.StringIO()
    chat = Chat(
        Session(served, settings), ModelOpener(EngineLimits(0, rows=1)), Listed(*lines), votes,
        answers=Screen(file=out, width=200), notes=Screen(file=notes, width=200),
    )  # fmt: skip
    chat.close = lambda: None  # type: ignore[method-assign]  # the model is used again
    talk(chat, obey)
    return out.getvalue(), notes.getvalue(), chat


def test_answers_alone_stand_on_the_standard_output(served: ServedModel) -> None:
    out, notes, chat = said(served, "你好", "/system Be brief.", "/retry")
    answer = chat.session.messages[-1].content
    assert [m.role for m in chat.session.messages] == ["user", "assistant"]
    assert out.endswith(safe(answer) + "\n") and out != safe(answer) + "\n" and "system" not in out
    assert "system: Be brief." in notes


def test_a_word_with_a_mistake_is_named_with_the_nearest_one(served: ServedModel) -> None:
    _, notes, chat = said(served, "/sytem Be brief.", "/zzz", "/set temprature=1")
    assert "Did you mean /system?" in notes and "there is no /zzz" in notes
    assert "Did you mean temperature?" in notes
    assert chat.session.system is None and not chat.session.messages


def test_settings_are_checked_and_all_or_none_taken(served: ServedModel) -> None:
    _, notes, chat = said(served, "/set top_k=3 seed=none", "/set temperature=0 top_p=5", "/set min_p=x")
    settings = chat.session.settings
    assert (settings.top_k, settings.seed, settings.temperature) == (3, None, 1.0)
    assert "top_p 5" in notes and "at most 1" in notes and "min_p=x" in notes


def test_a_conversation_that_was_kept_goes_on(served: ServedModel, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    _, _, first = said(
        served, "/system 简短。", "/set top_k=7", "你好", f"/save {file}", "Hello", f"/save {file}"
    )
    _, notes, second = said(served, f"/load {file}")
    assert second.session.messages == first.session.messages and len(second.session.messages) == 4
    assert second.session.system == "简短。" and second.session.settings.top_k == 7
    _, notes, third = said(served, "Hello", f"/save {file}")
    assert "exists" in notes and len(json.loads(file.read_text("utf-8"))["messages"]) == 5
    file.write_text('{"messages": [{"role": "judge", "content": "x"}]}', "utf-8")
    before = list(third.session.messages)
    with pytest.raises(UserError, match="messages, turn 1"):
        load_session(file, third.session)
    assert third.session.messages == before != []


def test_two_models_are_compared_and_scored(
    served: ServedModel, folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    votes = tmp_path / "votes.jsonl"
    lines = ["/vote a", f"/score {reward_folder}", "你好", f"/compare {folder}", "/vote c", "/vote b"]
    out, notes, chat = said(served, *lines, "/vote b", "/compare", "Hello", votes=votes)
    assert "only one model answers" in notes and "wanted a, b or tie" in notes
    assert "no two answers" in notes and "one model answers again" in notes
    (row,) = [json.loads(line) for line in votes.read_text("utf-8").splitlines()]
    assert chat.session.messages[1] == Message("assistant", row["chosen"][0]["content"])
    assert safe(row["rejected"][0]["content"]) in out and row["rejected"] != row["chosen"]
    assert f"{row['reward_scores']['chosen']:.4g}" in notes
    assert len(chat.session.messages) == 4


def test_a_model_of_the_wrong_kind_is_refused(served: ServedModel, folder: Path, reward_folder: Path) -> None:
    _, notes, chat = said(served, f"/compare {reward_folder}", f"/score {folder}", "/score", "/retry")
    assert "scores answers and writes none" in notes and "is no reward model" in notes
    assert "there is no reward model" in notes and "nothing was asked yet" in notes
    assert chat.contest is None and chat.scorer is None
