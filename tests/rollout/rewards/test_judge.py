"""A judge over HTTP, in a process of its own: what it is asked, what is kept, and what happens where it is down."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from espalier.rollout.rewards.judge import RatingJudge
from espalier.rollout.rewards.scorer import Failure, Means, silent
from tests.rollout.rewards import served
from tests.rollout.rewards.conftest import ASK, scorer_of


@dataclass(frozen=True)
class Served:
    """A running judge."""

    url: str
    log: Path

    @property
    def asked(self) -> list[dict[str, Any]]:
        return (
            [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]
            if self.log.exists()
            else []
        )

    def entry(self, **settings: Any) -> dict[str, Any]:
        return {"type": "judge", "url": self.url, "model": "wise", "wait": 0.01, **settings}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    started: list[subprocess.Popen[str]] = []

    def make(down: int = 0) -> Served:
        log = tmp_path / f"asked-{len(started)}.jsonl"
        words = [sys.executable, served.__file__, str(log), str(down)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return Served(f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log)

    yield make
    for process in started:
        process.kill()
        process.communicate()


def rated(entry: dict[str, Any], answers: list[str], folder: Path | None = None) -> list[float | Failure]:
    return list(scorer_of(entry, Means(folder=folder))(ASK, answers, silent))


def test_each_answer_is_asked_once_and_kept(
    serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    judge = serve()
    assert rated(judge.entry(), ["abc", "abcdef", "abc"], tmp_path) == [0.3, 0.6, 0.3]
    assert len(judge.asked) == 2 and {row["key"] for row in judge.asked} == {"Bearer sk-hidden"}
    text = judge.asked[0]["text"]
    assert "[Conversation]\nuser: asked\n" in text and "from 0 (useless) to 10 (it" in text
    kept = tmp_path / RatingJudge.NAME
    with kept.open("a", encoding="utf-8") as file:
        file.write('{"key": "half a li')
    assert rated(judge.entry(), ["abcdef", "abcde"], tmp_path) == [0.6, 0.5]
    assert len(judge.asked) == 3, "a later run pays for the new answer alone"
    assert rated(judge.entry(), ["abcde", "abc"], tmp_path) == [0.5, 0.3] and len(judge.asked) == 3
    assert "sk-hidden" not in kept.read_text("utf-8")


def test_a_prompt_of_ones_own_is_filled_in_once(serve: Callable[..., Served]) -> None:
    judge = serve()
    entry = judge.entry(prompt="{reference}, {best}: {x} [Answer]\n{answer}\n\nGive", best=5)
    assert rated(entry, ["{prompt}"]) == [Failure("has no rating from its judge, who ends with 'Fine. [[8]]'",
        "A last line such as [[5]], from 0 to 5, was wanted: say so in `prompt`, or take another judge")]  # fmt: skip
    assert judge.asked[0]["text"] == "7, 5: {x} [Answer]\n{prompt}\n\nGive"


def test_a_judge_that_is_down_for_a_while_is_asked_again(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    judge, told = serve(down=3), list[str]()
    scorer = scorer_of(judge.entry(parallel=1), Means(folder=tmp_path))
    assert list(scorer(ASK, ["abc"], told.append)) == [0.3]
    assert len(judge.asked) == 4 and len(told) == 3
    assert "the judge answers 503" in told[0] and "Asked again in 0.01 s (1 of 6)" in told[0]
    short = serve(down=3)
    (failed,) = rated(short.entry(retries=1), ["abc"])
    assert (
        isinstance(failed, Failure) and "has no answer of its judge" in failed.what and len(short.asked) == 2
    )
    silent_one = serve(down=4)
    found = rated(silent_one.entry(retries=2, parallel=1), ["a", "ab", "abc", "abcd"])
    assert [isinstance(one, Failure) for one in found] == [True, True, False, False] and found[2:] == [
        0.3,
        0.4,
    ]
    assert len(silent_one.asked) == 3 + 1 + 2, (
        "once waited for in vain, it is tried once until it is there again"
    )
    (gone,) = rated(short.entry(url="http://127.0.0.1:9/v1", retries=1), ["abc"])
    assert isinstance(gone, Failure) and "cannot be asked" in gone.what and "check `url`" in gone.what


@pytest.mark.parametrize("said", ["It is good.", "[[11]]", "[[-1]]", "[[x]]"])
def test_what_is_no_rating_is_a_failure_of_its_answer(said: str, serve: Callable[..., Served]) -> None:
    judge = serve()
    bad, good = rated(judge.entry(), [f"rate: {said}", "rate: so [[2]]? No: [[ 7.5 ]]"])
    assert isinstance(bad, Failure) and "has no rating from its judge" in bad.what and said in bad.what
    assert good == 0.75


def test_a_budget_ends_and_what_is_kept_counts(serve: Callable[..., Served], tmp_path: Path) -> None:
    judge = serve()
    assert rated(judge.entry(calls=2, parallel=1), ["a", "ab"], tmp_path) == [0.1, 0.2]
    kept, over = rated(judge.entry(calls=2), ["ab", "abc"], tmp_path)
    assert kept == 0.2 and isinstance(over, Failure) and "no call left of its budget (calls: 2)" in over.what
    assert rated(judge.entry(calls=3), ["abc"], tmp_path) == [0.3] and len(judge.asked) == 3
    other = judge.entry(calls=1, best=20)
    assert rated(other, ["abc"], tmp_path) == [0.15] and len(judge.asked) == 4, (
        "another judge has its own budget"
    )
    assert isinstance(rated(other, ["a"], tmp_path)[0], Failure)


def test_a_slow_judge_has_a_limit(serve: Callable[..., Served]) -> None:
    judge = serve()
    slow, fast = rated(judge.entry(seconds=0.3, retries=0, parallel=2), ["sleep", "abc"])
    assert isinstance(slow, Failure) and "timed out" in slow.what and fast == 0.3
