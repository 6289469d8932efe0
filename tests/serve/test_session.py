"""What a conversation keeps, and what it leaves out."""

from __future__ import annotations

import pytest

from espalier.data.records import ASSISTANT, SYSTEM, USER, Message
from espalier.errors import UserError
from espalier.serve.model import ServedModel
from espalier.serve.session import Session
from espalier.serve.settings import AnswerSettings
from espalier.serve.text import whole_characters


def session(model: ServedModel, room: int = 8, **settings: object) -> Session:
    return Session(model, AnswerSettings(**{"max_new_tokens": room, "temperature": 0, **settings}))  # type: ignore[arg-type]


def test_the_streamed_pieces_are_the_answer(served: ServedModel) -> None:
    talk = session(served)
    said = "".join(text for _, text in talk.ask("你好"))
    assert [m.role for m in talk.messages] == [USER, ASSISTANT]
    assert said == talk.messages[-1].content == whole_characters(said) and said
    assert talk.ended in ("stop", "length")


def test_the_same_question_is_answered_anew_and_the_same_talk_the_same(served: ServedModel) -> None:
    def talked() -> list[str]:
        talk = session(served, temperature=1.0, seed=5)
        return ["".join(text for _, text in talk.ask("Hello")), "".join(text for _, text in talk.retry())]

    first = talked()
    assert first == talked() and first[0] != first[1]


def test_the_oldest_exchange_goes_first_and_the_system_turn_stays(served: ServedModel) -> None:
    talk = session(served, room=4)
    talk.system = "Be brief."
    for turn in range(60):
        list(talk.ask(f"Hello world {turn}"))
        if talk.forgotten:
            break
    assert 0 < talk.forgotten < turn and not talk.cut
    messages = [Message(SYSTEM, "Be brief."), *talk.messages[:-1]]
    asked = served.fitted(messages, 4)
    text = served.tokenizer.decode(list(asked.ids))
    assert asked.forgotten == talk.forgotten and len(asked.ids) <= served.context - 4
    assert "Be brief." in text and f"Hello world {turn}" in text
    left = [n for n in range(turn + 1) if f"Hello world {n}<|im_end|>" in text]
    assert left == list(range(talk.forgotten, turn + 1))
    assert len(served.fitted(messages, 1).ids) + 1 <= served.context


def test_a_question_that_is_too_long_loses_its_beginning_and_says_so(served: ServedModel) -> None:
    talk = session(served, room=4)
    list(talk.ask("Hello world " * 300))
    whole = served.asked(talk.messages[:1])
    assert talk.cut == len(whole.ids) - (served.context - 4) > 0


def test_an_answer_that_nobody_listens_to_is_kept_as_far_as_it_went(served: ServedModel) -> None:
    talk = session(served, room=100, logit_bias={2: -100.0})
    heard = ""
    for _, text in talk.ask("Hello"):
        heard += text
        if len(heard) > 3:
            break
    assert talk.messages[-1].content == heard and talk.ended == ""


def test_what_the_template_refuses_was_not_asked(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise UserError("no")

    talk = session(served)
    monkeypatch.setattr(ServedModel, "prompt", refuses)
    with pytest.raises(UserError):
        list(talk.ask("Hello"))
    assert not talk.messages


def test_an_answer_that_has_begun_is_gone_on_with(served: ServedModel) -> None:
    begun = [Message(USER, "Hello"), Message(ASSISTANT, "The answer is")]
    assert served.prompt(begun) == served.prompt(begun[:1]) + "The answer is"
    assert not served.asked(begun).in_thoughts
    assert served.asked([Message(USER, "Hello"), Message(ASSISTANT, "<think>\n")]).in_thoughts
