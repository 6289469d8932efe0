"""How long a judge that is down is waited for, and that a signal ends it."""

from __future__ import annotations

import pytest

from espalier.checking import endpoint
from espalier.checking.endpoint import Endpoint, NoAnswer
from espalier.errors import Stopped
from espalier.rollout.rewards.judge import JudgeSettings

NOWHERE = Endpoint("http://127.0.0.1:9/v1", "m")


def test_the_tries_of_a_judge_take_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = list[float]()
    monkeypatch.setattr(endpoint, "_sleep", waits.append)
    settings = JudgeSettings(url=NOWHERE.url, model="m")
    with pytest.raises(NoAnswer, match="cannot be asked"):
        NOWHERE.answer_patiently("?", settings.retries, settings.wait)
    assert waits == [1, 2, 4, 8, 16, 30]


def test_a_refusal_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_sleep", lambda seconds: pytest.fail("waited for what cannot change"))
    with pytest.raises(NoAnswer, match="wanted http://"):
        Endpoint("file:///etc", "m").answer_patiently("?", 6, 1.0)


def test_a_signal_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "stop_asked", lambda: True)
    with pytest.raises(Stopped, match="while a judge was waited for"):
        NOWHERE.answer_patiently("?", 1, 1000.0)
