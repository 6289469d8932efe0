"""Numbers of exams against closed forms, and comparisons of two models against scipy."""

from __future__ import annotations

import math
import statistics

import pytest

from espalier.exam.numbers.compare import mcnemar, paired
from espalier.exam.numbers.scores import Tally
from espalier.maths.ratio import Moments


def moments(values: list[float]) -> Moments:
    found = Moments()
    for value in values:
        found.add(value)
    return found


@pytest.mark.parametrize("values", [[1.0, 0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.125], [1.0] * 4])
def test_mean_and_standard_error(values: list[float]) -> None:
    found = moments(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.stderr == pytest.approx(statistics.stdev(values) / len(values) ** 0.5)


def test_a_ratio_has_the_error_of_a_ratio() -> None:
    """Against the same estimator over all pairs at once (Cochran 1977, eq. 6.13)."""
    pairs = [(2.0, 4.0), (1.0, 1.0), (5.0, 6.0), (0.5, 3.0)]
    found = Moments()
    for x, w in pairs:
        found.add(x, w)
    value = sum(x for x, _ in pairs) / sum(w for _, w in pairs)
    spread = sum((x - value * w) ** 2 for x, w in pairs) * 4 / 3
    assert found.mean == pytest.approx(value)
    assert found.stderr == pytest.approx(spread**0.5 / sum(w for _, w in pairs))


def test_nats_a_token_are_given_as_perplexity_too() -> None:
    tally = Tally()
    for nats, tokens in ((4.0, 2.0), (9.0, 3.0)):
        tally.add({"nats_per_token": (nats, tokens)})
    found = tally.summary({})["metrics"]
    assert found["perplexity"] == pytest.approx(math.exp(13 / 5))
    assert found["perplexity_stderr"] == pytest.approx(found["perplexity"] * found["nats_per_token_stderr"])


def test_one_number_has_no_spread_and_nor_has_a_mean_with_it() -> None:
    tally = Tally()
    for group, values in {"law": [1.0], "art": [1.0, 0.0]}.items():
        for value in values:
            tally.add({"accuracy": value}, group=group)
    summary = tally.summary({"humanities": ("art",)})
    assert summary["subjects"]["law"]["accuracy_stderr"] is None
    assert summary["metrics"]["macro_accuracy_stderr"] is None
    assert summary["metrics"]["accuracy_stderr"] == pytest.approx(1 / 3)
    assert summary["parts"]["humanities"]["macro_accuracy_stderr"] == 0.5


def test_micro_macro_parts_chance_and_majority() -> None:
    tally = Tally()
    for group, golds, right in (("law", [0, 0, 0, 1], [1, 1, 1, 0]), ("art", [0, 1], [0, 0])):
        for gold, value in zip(golds, right, strict=True):
            tally.add({"accuracy": float(value)}, group=group, chance=0.5, gold="ab"[gold])
    found = tally.summary({"humanities": ("art", "history"), "all": ("art", "law")})
    assert found["n"] == 6 and found["chance"] == 0.5 and found["majority"] == pytest.approx(4 / 6)
    assert found["metrics"]["accuracy"] == 0.5 and found["metrics"]["macro_accuracy"] == 0.375
    # Var(macro) = (Var(law mean) + Var(art mean)) / 4; art has no spread, law's variance is 0.25 / 4.
    assert found["metrics"]["macro_accuracy_stderr"] == pytest.approx((0.25 / 4) ** 0.5 / 2)
    assert found["subjects"]["law"]["accuracy"] == 0.75
    assert found["parts"]["humanities"]["n"] == 2 and found["parts"]["all"]["macro_accuracy"] == 0.375


def test_paired_difference_and_mcnemar() -> None:
    a = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0]
    b = [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    found = paired(a, b)
    differences = [y - x for x, y in zip(a, b, strict=True)]
    assert found["difference"] == pytest.approx(statistics.fmean(differences))
    assert found["stderr"] == pytest.approx(statistics.stdev(differences) / 8**0.5)
    assert found["low"] < found["difference"] < found["high"]
    assert (found["only_a"], found["only_b"]) == (1, 2)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    scipy = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for only_a, only_b in ((0, 0), (1, 4), (10, 3), (40, 60), (200, 260)):
        n = only_a + only_b
        expected = scipy.binomtest(only_a, n, 0.5).pvalue if n else 1.0
        assert mcnemar(only_a, only_b) == pytest.approx(expected)


def test_numbers_that_are_not_right_or_wrong_have_no_mcnemar() -> None:
    assert "mcnemar_p" not in paired([0.5, 0.2], [0.1, 0.2])
