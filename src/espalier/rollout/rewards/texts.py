"""Rewards that look at the text of an answer alone: its form, length, script and repetitions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from espalier.config.option import Options, option
from espalier.rollout.asked import Ask
from espalier.rollout.rewards.scorer import AnswerScorer, Means, each

_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_UNITS = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W\u3400-\u9fff\uf900-\ufaff]+")
"""Words, and Chinese characters one by one."""


@dataclass(frozen=True, kw_only=True)
class FormatSettings(Options):
    """1 where an answer is these tags in their order, each once, and nothing else (DeepSeek-R1, section 2.2.2); else 0."""

    tags: list[str] = option(["think", "answer"], "The tags, as in <think>…</think><answer>…</answer>.")

    def problems(self) -> list[str]:
        if not self.tags or len(set(self.tags)) < len(self.tags):
            return ["`tags` wants one name or more, none of them twice."]
        wrong = [tag for tag in self.tags if not re.fullmatch(r"\w[\w.:-]*", tag)]
        return [f"`tags` has {wrong[0]!r}; wanted names without brackets, such as think."] if wrong else []


def build_format(settings: FormatSettings, means: Means) -> AnswerScorer:
    marks = [mark for tag in settings.tags for mark in (f"<{tag}>", f"</{tag}>")]

    def score(ask: Ask, answer: str) -> float:
        places = [answer.find(mark) for mark in marks]
        if any(answer.count(mark) != 1 for mark in marks) or places != sorted(places):
            return 0.0
        ends = [at + len(mark) for at, mark in zip(places, marks, strict=True)]
        # What stands before the first tag, between one's end and the next one's beginning, and behind the last.
        outside = [answer[a:b] for a, b in zip([0, *ends[1::2]], [*places[::2], len(answer)], strict=True)]
        return float(not any(text.strip() for text in outside))

    return each(score)


@dataclass(frozen=True, kw_only=True)
class LengthSettings(Options):
    """1 where an answer is as long as is wanted, less by the share that it is too long or too short, at least 0."""

    target: int | None = option(None, "Wanted is this length.", min=1)
    shortest: int | None = option(None, "Wanted is at least this length.", min=1)
    longest: int | None = option(None, "Wanted is at most this length.", min=1)
    unit: Literal["characters", "words"] = option(
        "characters", "What is counted; a Chinese character is a word."
    )

    def problems(self) -> list[str]:
        bounds = self.shortest is not None or self.longest is not None
        if bounds == (self.target is not None):
            return ["Give `target`, or `shortest` and `longest` (or one of them), and not both."]
        if self.shortest is not None and self.longest is not None and self.shortest > self.longest:
            return [f"`shortest` {self.shortest} is more than `longest` {self.longest}."]
        return []


def build_length(settings: LengthSettings, means: Means) -> AnswerScorer:
    low = settings.target or settings.shortest
    high = settings.target or settings.longest

    def score(ask: Ask, answer: str) -> float:
        length = len(_UNITS.findall(answer)) if settings.unit == "words" else len(answer)
        if low is not None and length < low:
            return length / low
        if high is not None and length > high:
            return max(0.0, 1 - (length - high) / high)
        return 1.0

    return each(score)


@dataclass(frozen=True, kw_only=True)
class LanguageSettings(Options):
    """The share of an answer's letters that are of a language's script; 0 where it has no letters."""

    language: Literal["zh", "en"] = option("en", "zh: Chinese characters; en: Latin letters.")


def build_language(settings: LanguageSettings, means: Means) -> AnswerScorer:
    wanted = _HAN if settings.language == "zh" else _LATIN

    def score(ask: Ask, answer: str) -> float:
        letters = [sign for sign in answer if sign.isalpha()]
        return sum(bool(wanted.match(sign)) for sign in letters) / len(letters) if letters else 0.0

    return each(score)


@dataclass(frozen=True, kw_only=True)
class RepetitionSettings(Options):
    """Minus the share of an answer's n-grams of words that have stood in it before: 0 to -1."""

    n: int = option(3, "Words of an n-gram; a Chinese character is a word.", min=1)


def build_repetition(settings: RepetitionSettings, means: Means) -> AnswerScorer:
    def score(ask: Ask, answer: str) -> float:
        words = [word.lower() for word in _UNITS.findall(answer)]
        grams = list(zip(*(words[i:] for i in range(settings.n)), strict=False))
        return len(set(grams)) / len(grams) - 1 if grams else 0.0

    return each(score)
