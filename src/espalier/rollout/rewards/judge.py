"""A language model behind an OpenAI-compatible endpoint that rates answers; what it has said is kept and asked once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.checking.endpoint import Endpoint, NoAnswer, unfit_url
from espalier.config.option import Options, option
from espalier.engine.signals import stop_asked
from espalier.errors import Stopped, UserError
from espalier.rollout.asked import Ask
from espalier.rollout.rewards.scorer import Failure, Means, Show

ASKED = """\
Rate the last answer of an assistant: is it right, helpful, complete and clear? Its length does not count in itself.

[Conversation]
{conversation}

[Answer]
{answer}

Give your reasons in a few sentences. Then end with a line of its own: [[N]], where N is a number from 0 (useless) to \
{best} (it could not be better)."""

_RATING = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]")


@dataclass(frozen=True, kw_only=True)
class JudgeSettings(Options):
    """What a language model behind an OpenAI-compatible endpoint rates an answer at, as a share of the best: 0 to 1."""

    url: str = option("", "Of the API, such as http://localhost:8000/v1.", same_result=True)
    model: str = option("", "The judge's name there.")
    key_from: str = option("OPENAI_API_KEY", "The environment variable with the key.", same_result=True)
    prompt: str = option(
        ASKED,
        "What is asked: {conversation}, {prompt} (its last turn), {answer}, {reference} and {best} are filled in, and "
        "the judge's last [[N]] counts.",
    )
    best: float = option(10.0, "The best rating.", above=0)
    seconds: float = option(120.0, "For one answer of the judge.", above=0, same_result=True)
    retries: int = option(
        6, "Further tries where the judge is down or busy; six take a minute.", min=0, same_result=True
    )
    wait: float = option(
        1.0, "Seconds before the second try; each wait is twice as long.", above=0, same_result=True
    )
    calls: int | None = option(
        None, "The most answers that are judged in a run; null: no limit.", min=1, same_result=True
    )
    parallel: int = option(4, "Questions that are open at the same time.", min=1, same_result=True)

    def problems(self) -> list[str]:
        problems = [f"`{key}` is missing; name it." for key in ("url", "model") if not getattr(self, key)]
        if self.url and (wrong := unfit_url(self.url)) is not None:
            problems.append(f"`url` {wrong}")
        if "{answer}" not in self.prompt:
            problems.append("`prompt` has no {answer}, so the judge would not see what it rates.")
        return problems


class RatingJudge:
    """The judge as a scorer.

    Args:
        settings: of the judge.
        means: of the run; in its folder `NAME` keeps what was said, a line an answer.
    """

    NAME = "judged.jsonl"

    def __init__(self, settings: JudgeSettings, means: Means) -> None:
        key = os.environ.get(settings.key_from, "")
        self._endpoint = Endpoint(settings.url, settings.model, key, settings.seconds, ("`url`", "`model`"))
        self._settings = settings
        # Several judges keep their answers in one file, and each has a budget of its own.
        who = json.dumps([settings.model, settings.prompt, settings.best])
        self._name = hashlib.sha256(who.encode()).hexdigest()[:8]
        self._kept = Kept(None if means.folder is None else means.folder / self.NAME, self._name)
        self._budget, self._spent, self._lock = _share(settings.calls, means.world), 0, threading.Lock()
        self._silent = False

    def __call__(self, ask: Ask, answers: Sequence[str], show: Show) -> Iterator[float | Failure]:
        questions = [self._question(ask, answer) for answer in answers]
        ratings: dict[str, float | Failure | BaseException] = {}
        todo = list(dict.fromkeys(questions))

        def work() -> None:
            while True:
                with self._lock:
                    if not todo:
                        return
                    question = todo.pop(0)
                try:
                    ratings[question] = self._rating(question, show)
                except BaseException as error:
                    ratings[question] = error

        # Threads that don't outlive a run that is stopped while the judge is silent.
        workers = [
            threading.Thread(target=work, daemon=True) for _ in range(min(self._settings.parallel, len(todo)))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(0.05)
                if stop_asked():
                    raise Stopped("stopped while a judge was waited for; run the same command again")
        for question in questions:
            rating = ratings[question]
            if isinstance(rating, BaseException):
                raise rating
            yield rating

    def _question(self, ask: Ask, answer: str) -> str:
        turns = [f"{turn['role']}: {turn.get('content', '')}" for turn in ask.messages]
        filled = {
            "conversation": "\n".join(turns) or ask.text,
            "prompt": ask.text,
            "answer": answer,
            "reference": ask.reference or "",
            "best": f"{self._settings.best:g}",
        }
        names = "|".join(filled)
        return re.sub(rf"\{{({names})\}}", lambda found: filled[found[1]], self._settings.prompt)

    def _rating(self, question: str, show: Show) -> float | Failure:
        settings = self._settings
        key = hashlib.sha256(json.dumps([settings.model, question]).encode()).hexdigest()[:24]
        said = self._kept.get(key)
        if said is None:
            with self._lock:
                left = self._budget is None or self._kept.before + self._spent < self._budget
                self._spent += left
            if not left:
                return Failure(
                    f"has no call left of its budget (calls: {settings.calls})", "Raise `calls` to go on"
                )
            try:
                # Behind one that was waited for in vain, each is tried once until the judge is there again.
                retries = 0 if self._silent else settings.retries
                said = self._endpoint.answer_patiently(question, retries, settings.wait, show)
                self._silent = False
            except NoAnswer as error:
                self._silent = error.passing
                with self._lock:
                    self._spent -= 1
                return Failure(f"has no answer of its judge ({error})", "What was judged is kept")
            self._kept.put(key, {"judge": self._name, "question": question, "said": said})
        found = _RATING.findall(said)
        if not found or not 0 <= float(found[-1]) <= settings.best:
            last = said.strip()[-80:]
            return Failure(
                f"has no rating from its judge, who ends with {last!r}",
                f"A last line such as [[{settings.best:g}]], from 0 to {settings.best:g}, was wanted: say so in `prompt`, or "
                "take another judge",
            )
        return float(found[-1]) / settings.best


def _share(calls: int | None, world: int) -> int | None:
    """Of a budget, for one of several processes."""
    return None if calls is None else max(calls // world, 1)


class Kept:
    """What a judge has said, by a hash of what it was asked; lines of a file, each written whole.

    Args:
        path: the file; None keeps nothing for a later run.
        judge: who asks.

    Attributes:
        before: how many answers to this judge were kept when the run began.
    """

    def __init__(self, path: Path | None, judge: str) -> None:
        self._path, self._lock = path, threading.Lock()
        self._said: dict[str, str] = {}
        self.before = 0
        text = path.read_text("utf-8") if path is not None and path.is_file() else ""
        for line in text.split("\n"):
            row = _row(line)
            if "key" in row and row["key"] not in self._said:
                self._said[row["key"]] = str(row["said"])
                self.before += row.get("judge") == judge
        self._ends_a_line = "\n" if text and not text.endswith("\n") else ""

    def get(self, key: str) -> str | None:
        return self._said.get(key)

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep an answer.

        Raises:
            UserError: the file cannot be written.
        """
        with self._lock:
            self._said[key] = row["said"]
            if self._path is None:
                return
            line = self._ends_a_line + json.dumps({"key": key, **row}, ensure_ascii=True) + "\n"
            self._ends_a_line = ""
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                number = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    os.write(number, line.encode())  # at once: other processes append to it, too
                finally:
                    os.close(number)
            except OSError as error:
                raise UserError(f"{self._path}: what the judge says cannot be kept ({error}).") from None


def _row(line: str) -> dict[str, Any]:
    """A line that was written whole; {} for half a one, whose question is asked again."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return row if isinstance(row, dict) and "said" in row else {}


def build_judge(settings: JudgeSettings, means: Means) -> RatingJudge:
    return RatingJudge(settings, means)
