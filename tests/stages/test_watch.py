"""What is wrong is said once, with the step where it turned; what is noise is not said."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from statistics import NormalDist

import pytest
from scipy import stats

from espalier.stages.watch import CHECKS, Named, Watch, errors_wanted

P = 64


def flat(value: float, luck: random.Random | None = None, spread: float = 0.3) -> list[float]:
    """A number for each prompt: prompts differ in the same way each time, and luck on top."""
    of_prompt = random.Random(1)
    return [
        value + of_prompt.gauss(0, spread) + (luck.gauss(0, 0.1) if luck is not None else 0.0)
        for _ in range(P)
    ]


def watch(**changes: object) -> Watch:
    return Watch(Named(**({"yardstick": "equals", "own": False, "kl_bound": 10.0} | changes)))  # type: ignore[arg-type]


def seen(
    told: Watch,
    step: int,
    numbers: dict[str, float] | None = None,
    over: bool = False,
    **prompts: Sequence[float],
) -> list[str]:
    told.note(prompts, numbers or {})
    return told.look(step, over)


def kinds(told: Watch) -> list[str]:
    return [warning["kind"] for warning in told.warnings]


@pytest.mark.parametrize(("n", "looks"), [(6, 1), (12, 5), (130, 1), (130, 20), (1000, 100)])
def test_the_errors_that_are_wanted_are_student_s_with_bonferroni_s_share(n: int, looks: int) -> None:
    wanted = stats.t.isf(NormalDist().cdf(-2) / looks, n - 1)
    assert errors_wanted(n, looks) == pytest.approx(wanted, rel=2e-3 if n > 6 else 1e-2)
    assert errors_wanted(n, looks) >= 2


def test_reward_up_and_yardstick_down_is_said_once_with_the_step_where_it_turned() -> None:
    told, luck = watch(), random.Random(3)
    said = {}
    for step, reward, right in [
        (0, 0.0, 0.3),
        (10, 0.3, 0.5),
        (20, 0.6, 0.6),
        (30, 0.9, 0.45),
        (40, 1.2, 0.2),
    ]:
        said[step] = seen(
            told, step, reward=flat(reward, luck), yardstick=flat(right, luck), yardstick_greedy=flat(0.5)
        )
    assert [bool(said[step]) for step in said] == [False, False, False, True, False]
    (text,) = said[30]
    assert "the reward rose and the yardstick fell: since step 20 reward" in text
    assert "it turned at step 20" in text and "equals 0.6" in text and "sampled answers to 64 prompts" in text
    assert told.warnings == [{"step": 30, "kind": "yardstick", "text": text}]


def test_a_greedy_yardstick_that_falls_is_said_too() -> None:
    told = watch()
    for step, right in ((0, 0.5), (10, 0.2)):
        seen(
            told,
            step,
            reward=flat(step / 10),
            yardstick=flat(0.3),
            yardstick_greedy=flat(right, random.Random(step)),
        )
    assert kinds(told) == ["yardstick_greedy"] and "on greedy answers" in told.warnings[0]["text"]


def test_a_yardstick_that_falls_without_any_gain_is_harm_and_not_a_trick() -> None:
    told = watch()
    for step, right in ((0, 0.5), (10, 0.2)):
        seen(
            told, step, reward=flat(1.0, random.Random(step)), yardstick=flat(right, random.Random(step + 1))
        )
    assert kinds(told) == ["harm"] and "the reward did not clearly rise" in told.warnings[0]["text"]


def test_a_reward_that_is_its_own_yardstick_proves_nothing() -> None:
    told = watch(own=True)
    for step, right in ((0, 0.5), (10, 0.1)):
        seen(told, step, reward=flat(step), yardstick=flat(right), yardstick_greedy=flat(right))
    assert told.warnings == []


def test_luck_is_silent() -> None:
    """100 honest runs of 12 evaluations: the reward rises, the yardstick does not move."""
    alarms = 0
    for number in range(100):
        told, luck = watch(), random.Random(number)
        for step in range(12):
            right = [float(luck.random() < 0.3) for _ in range(P)]
            seen(
                told,
                step,
                {"length_correlation": luck.uniform(-1, 1)},
                over=step == 11,
                reward=flat(step, luck),
                yardstick=right,
                yardstick_best_of_4=[float(luck.random() < 0.3) for _ in range(P)],
                kl=[luck.gauss(5, 9) for _ in range(P)],
                answer_tokens=flat(20, luck, 5),
                ended=[float(luck.random() < 0.9) for _ in range(P)],
                duplicates=[luck.random() for _ in range(P)],
            )
        alarms += bool(told.warnings)
    # Each of five checks that luck can set off may do so in one run of thirty, however often it looks.
    assert alarms < 100 * 0.2


def test_without_the_bound_for_many_looks_luck_would_not_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def falls(told: Watch, luck: random.Random) -> bool:
        for step in range(30):
            right = [float(luck.random() < 0.3) for _ in range(P)]
            seen(told, step, over=step == 29, reward=flat(step, luck), yardstick=right)
        return bool(told.warnings)

    honest = sum(falls(watch(), random.Random(number)) for number in range(60))
    monkeypatch.setattr("espalier.stages.watch.errors_wanted", lambda n, looks: 2.0)
    naive = sum(falls(watch(), random.Random(number)) for number in range(60))
    assert honest < 60 * 0.15 < 60 * 0.5 < naive


def test_a_small_loss_is_said_at_the_last_evaluation() -> None:
    """Of 130 questions 17 were right and 6 are: 2.8 standard errors, which is much for one look and little for ten."""
    for steps in (1, 9):
        told = watch()
        for step in range(steps):
            seen(told, step, reward=[float(step)] * 130, yardstick_greedy=[float(i < 17) for i in range(130)])
        now = {
            "reward": [20.0] * 130,
            "yardstick_greedy": [float(i < 4 or 126 <= i < 128) for i in range(130)],
        }
        seen(told, 20, **now)
        assert bool(told.warnings) == (steps == 1)
        seen(told, 21, over=True, **now)
        assert kinds(told) == ["yardstick_greedy"]


@pytest.mark.parametrize(("bound", "warned"), [(3.0, True), (5.5, False), (None, False)])
def test_kl_past_its_bound(bound: float | None, warned: bool) -> None:
    told = watch(kl_bound=bound)
    seen(told, 10, kl=flat(5.0))
    assert kinds(told) == (["kl"] if warned else [])
    assert not warned or "past kl_bound 3" in told.warnings[0]["text"]


def _lengths(told: Watch, correlation: float, to: float, better: float, reward: float = 1.0) -> list[str]:
    for step in (0, 10):
        luck, late = random.Random(step), step > 0
        seen(
            told,
            step,
            {"length_correlation": correlation},
            reward=flat(reward * late, luck),
            yardstick=flat(0.3 + better * late, luck),
            answer_tokens=flat(to if late else 20, luck, 3),
        )
    return kinds(told)


def test_a_reward_that_goes_with_length() -> None:
    assert _lengths(watch(), 0.8, 40, 0.0) == ["length"]
    assert _lengths(watch(), -0.8, 10, 0.0) == ["length"], "short answers can be liked, too"
    told = watch()
    _lengths(told, 0.8, 40, 0.0)
    assert "is +0.80 within prompts" in told.warnings[0]["text"] and "from 2" in told.warnings[0]["text"]


def test_lengths_that_move_for_a_reason_are_no_trick() -> None:
    assert _lengths(watch(), 0.3, 40, 0.0) == [], "hardly correlated"
    assert _lengths(watch(), -0.8, 40, 0.0) == [], "against the reward"
    assert _lengths(watch(), 0.8, 21, 0.0) == [], "hardly longer"
    assert _lengths(watch(), 0.8, 40, 0.2) == [], "and the answers are better by the yardstick"
    assert _lengths(watch(), 0.8, 40, 0.0, reward=0.0) == [], "and the reward has gained nothing"


def test_the_strongest_correlation_counts_for_answers_of_one_length_have_none() -> None:
    told = watch()
    for step, correlation in ((0, {"length_correlation": 0.9}), (10, {})):
        seen(
            told,
            step,
            correlation,
            reward=flat(step),
            yardstick=flat(0.3),
            answer_tokens=flat(20 + step, None, 3),
        )
    assert kinds(told) == ["length"]


@pytest.mark.parametrize(
    ("name", "before", "now", "words"),
    [
        ("ended", 0.95, 0.4, "answers no longer end: 95% did at step 0, 40% do now"),
        ("duplicates", 0.2, 0.9, "have become the same: 90% of the pairs, 20% at step 0"),
    ],
)
def test_answers_that_never_end_or_are_all_the_same(name: str, before: float, now: float, words: str) -> None:
    told = watch()
    for step, value in ((0, before), (10, now)):
        shaken = [value + (-1) ** i * 0.05 * (1 + (i // 2 + step) % 3) for i in range(P)]
        seen(told, step, **{name: shaken, "yardstick": flat(0.3)})
    assert kinds(told) == [name] and words in told.warnings[0]["text"]


def test_answers_that_are_the_same_for_they_are_right_are_no_trouble() -> None:
    told = watch()
    for step, value, right in ((0, 0.2, 0.2), (10, 0.9, 0.9)):
        seen(told, step, duplicates=flat(value), yardstick=flat(right), reward=flat(right))
    assert told.warnings == []


def test_a_reward_that_prefers_worse_answers_is_told_before_the_first_step() -> None:
    told, luck = watch(), random.Random(0)
    said = seen(
        told,
        0,
        yardstick=flat(0.5, luck),
        yardstick_best_of_2=flat(0.4, luck),
        yardstick_best_of_4=flat(0.2, luck),
    )
    assert (
        kinds(told) == ["prefers_worse"]
        and "of 4 answers to a prompt the best by the reward has equals 0.2" in said[0]
    )


def test_scores_beyond_the_clip() -> None:
    told = watch()
    seen(told, 5, {"score_clipped": 0.1})
    assert told.warnings == []
    seen(told, 10, {"score_clipped": 0.4})
    assert kinds(told) == ["score_clipped"] and "40% of the scores" in told.warnings[0]["text"]


def _story(stop: Callable[[Watch, int], Watch]) -> Watch:
    told = watch()
    for step in range(0, 60, 10):
        luck = random.Random(step)
        told = stop(told, step)
        seen(told, step, {"length_correlation": 0.7}, reward=flat(step / 10, luck), yardstick=flat(0.6 - step / 100, luck),
             answer_tokens=flat(20 + step, luck), yardstick_greedy=flat(0.5, luck), kl=flat(step / 2, luck))  # fmt: skip
    return told


def test_stopping_is_not_stopping() -> None:
    def interrupted(told: Watch, step: int) -> Watch:
        again = watch()
        if step:
            again.restore(json.loads(json.dumps(told.state())))
        return again

    whole, broken = _story(lambda told, step: told), _story(interrupted)
    assert whole.warnings == broken.warnings and whole.state() == broken.state()
    assert {"yardstick", "length", "kl"} <= set(kinds(whole)) <= set(CHECKS)


def test_one_prompt_and_other_prompts_are_not_compared() -> None:
    told = watch()
    for step, n in ((0, 1), (10, 1), (20, 5), (30, 7)):
        assert (
            seen(told, step, reward=[float(step)] * n, yardstick=[1.0 - step / 100] * n, kl=[0.0] * n) == []
        )
