"""Judges of written answers against worked examples, other implementations and hundreds of real references."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise
from pathlib import Path

import pytest

from espalier.exam.judges.judge import JUDGES, judge_bleu, judge_contains, judge_exact_match, judge_rouge

pytest.importorskip("rouge_score", reason="the judges of the extra `exams` are not installed")

from espalier.checking import mathematics
from espalier.checking.mathematics import boxed, judge_expression, judge_number
from espalier.exam.judges.cmrc import judge_cmrc, segments
from espalier.maths.numerals import final_number

# --- reading: the official scorer's rules, once more in the plainest way ---------------------------


def longest_common_run(a: list[str], b: list[str]) -> int:
    return max((n for n in range(1, len(a) + 1) for i in range(len(a) - n + 1)
                if any(a[i : i + n] == b[j : j + n] for j in range(len(b) - n + 1))), default=0)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "right", "f1", "exact"),
    [
        ("北京", "北京", 1.0, 1.0),
        ("在北京市", "北京", 2 * (2 / 4) * 1 / (2 / 4 + 1), 0.0),
        ("北京。", "北京", 1.0, 1.0),  # signs do not count
        ("1990 年", "1990年", 1.0, 0.0),  # a space separates no Chinese word, but it is no sign either
        ("", "北京", 0.0, 0.0),
        ("GPU集群", "gpu集群", 1.0, 1.0),
        ("上下左右", "下上右左", 2 * 0.25 * 0.25 / 0.5, 0.0),  # a run, not a subsequence
    ],
)
def test_cmrc_by_hand(said: str, right: str, f1: float, exact: float) -> None:
    found = judge_cmrc(said, (right,))
    assert (found["f1"], found["exact_match"]) == pytest.approx((f1, exact))


@pytest.mark.slow
def test_cmrc_f1_on_real_answers_is_the_plain_formula(shared: Path) -> None:
    data = json.loads((shared / "data" / "cmrc2018" / "dev.json").read_text("utf-8"))["data"]
    asked = [qa for article in data for p in article["paragraphs"] for qa in p["qas"]][:300]
    for qa, other in pairwise(asked):
        references = tuple(answer["text"] for answer in qa["answers"])
        assert judge_cmrc(references[-1], references) == {"f1": 1.0, "exact_match": 1.0}
        said = other["answers"][0]["text"] + references[0][: len(references[0]) // 2]
        best = 0.0
        for reference in references:
            a, b = segments(said, signs=False), segments(reference, signs=False)
            n = longest_common_run(a, b) if len(a) * len(b) < 900 else None
            if n is None:
                break
            best = max(best, 2 * n / (len(a) + len(b)))
        else:
            assert judge_cmrc(said, references)["f1"] == pytest.approx(best)


# --- mathematics ---------------------------------------------------------------------------------


def test_every_reference_of_gsm8k_has_its_number(shared: Path) -> None:
    count = 0
    for name in ("test", "train"):
        for line in (shared / "data" / "gsm8k" / f"{name}.jsonl").open(encoding="utf-8"):
            answer = json.loads(line)["answer"]
            right = answer.split("#### ")[1].strip().replace(",", "")
            count += 1
            assert final_number(answer) == right
            written = f"So she has {answer.split('#### ')[1].strip()} left.\n\nI hope that helps!"
            assert final_number(written) == right, "a number in a sentence"
            assert judge_number(f"... = ${right}.00.", (answer,)) == {"accuracy": 1.0}
            assert judge_number(f"... is {right}1", (answer,)) == {"accuracy": 0.0}
    assert count > 2000


def test_numbers_are_compared_as_numbers() -> None:
    assert judge_number("3.0", ("#### 3",)) == {"accuracy": 1.0}
    assert judge_number("6/2", ("#### 3",)) == {"accuracy": 1.0}
    assert judge_number("no number at all", ("#### 3",)) == {"accuracy": 0.0}
    assert judge_number("1/0", ("#### 3",)) == {"accuracy": 0.0}
    assert judge_number("-5", ("#### 5",)) == {"accuracy": 0.0}


@pytest.mark.parametrize(
    ("said", "right", "equal"),
    [
        ("1/4", "3/4", False), ("3/4", "0.75", True), ("a loss of -$5", "-5", True), ("$-5", "-5", True),
        ("−5", "5", False), ("共1，224元", "1224", True), ("１，２２４", "224", False), ("1.5e3", "1500", True),
        ("1.5e3", "3", False), ("3,4,5", "5", True), ("€ 1,234.50", "1234.5", True), ("3, 4", "34", False),
        ("1e999999999", "999999999", True), ("5-3", "3", True), ("5 - 3", "-3", False), ("is -3", "-3", True), (".5", "1/2", True),
    ],
)  # fmt: skip
def test_exam_and_reward_read_one_number(said: str, right: str, equal: bool) -> None:
    from espalier.rollout.rewards.rules import RULES

    assert judge_number(said, (right,))["accuracy"] == RULES["number"]("", said, right) == equal


def test_an_ellipsis_is_no_sign_of_the_official_script() -> None:
    """Its list holds the text of two of them, which no single character equals."""
    found = judge_cmrc("他说…再见", ("他说再见",))
    assert found == {"f1": pytest.approx(4 / 9), "exact_match": 0.0}


@pytest.mark.slow
def test_every_reference_of_the_mathematical_sets_equals_itself_and_not_another(shared: Path) -> None:
    folder = shared / "data" / "math_bench"
    references = [
        str(json.loads(line)["ground_truth"])
        for line in (folder / "math_benchmarks_0710.jsonl").open(encoding="utf-8")
    ]
    solutions = [
        row["solution"] for row in json.loads((folder / "swift_rft_math.json").read_text("utf-8")).values()
    ]
    for right in references:
        assert judge_expression(f"Thus $x = 1$ and so \\boxed{{{right}}}.", (right,)) == {"accuracy": 1.0}, (
            right
        )
    for solution in solutions:
        right = boxed(solution)
        assert right is not None and right.count("{") == right.count("}")
        assert judge_expression(solution, (right,)) == {"accuracy": 1.0}
    numbers = [right for right in references if re.fullmatch(r"-?\d+", right)]
    assert len(references) + len(solutions) > 700 and len(numbers) > 200
    for right in numbers[::5]:
        assert judge_expression(f"\\boxed{{{int(right) + 1}}}", (right,)) == {"accuracy": 0.0}


@pytest.mark.parametrize(
    ("said", "right", "equal"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\dfrac12", r"\frac{1}{2}", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("x^2+2x", "(x+1)^2", False),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"\text{Angela}", r"\text{Evelyn}", False),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{\pi}{2})", True),
        (r"(\frac{\pi}{2}, 3)", r"(3, \frac{\pi}{2})", False),
        ("[2,5)", "[2,5)", True),
        ("(2,5)", "[2,5)", False),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        ("x=5", "5", True),
        (r"10\%", "10", True),
    ],
)
def test_symbolic_equality(said: str, right: str, equal: bool) -> None:
    assert judge_expression(rf"So \boxed{{{said}}}", (right,)) == {"accuracy": float(equal)}


@pytest.mark.slow
def test_what_no_computer_writes_out_is_not_comparable_and_the_next_answer_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mathematics, "SECONDS", 1.0)
    begun = time.monotonic()
    for tower in (r"\boxed{9^{9^{9}}}", r"\boxed{100!!!}"):
        assert judge_expression(tower, ("2",)) == {"accuracy": 0.0, "not_comparable": 1.0}
    assert judge_expression(r"\boxed{9^{9^{9}}}", (r"9^{9^{9}}",)) == {"accuracy": 1.0}, "letter by letter"
    assert time.monotonic() - begun < 15
    monkeypatch.undo()
    assert judge_expression(r"\boxed{\frac12}", ("0.5",)) == {"accuracy": 1.0}


# --- texts ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rouge_of_chinese_by_hand() -> None:
    found = judge_rouge("今天下雨", ("今天不下雨",))
    assert found["rouge_1"] == pytest.approx(2 * 4 / 9)  # 今 天 下 雨 of 4 and 5
    assert found["rouge_2"] == pytest.approx(2 * 2 / 7)  # 今天, 下雨 of 3 and 4
    assert found["rouge_l"] == pytest.approx(2 * 4 / 9)
    words = judge_rouge("今天下雨", ("明天下雨",))
    assert words["word_rouge_1"] == pytest.approx(0.5), "今天 and 下雨 against 明天 and 下雨"


def test_rouge_of_english_is_the_library_on_words() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    right, said = "the cat sat on the mat", "the cat lay on a mat"
    expected = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(right, said)
    found = judge_rouge(said, (right,))
    for name, key in (("rouge1", "rouge_1"), ("rouge2", "rouge_2"), ("rougeL", "rouge_l")):
        assert found[key] == pytest.approx(expected[name].fmeasure)


def test_bleu_is_sacrebleu() -> None:
    import sacrebleu

    said, right = "the cat lay on a mat today", "the cat sat on a mat today"
    expected = sacrebleu.sentence_bleu(said, [right]).score / 100
    assert judge_bleu(said, (right,))["bleu"] == pytest.approx(expected)
    assert judge_bleu("今天天气很好。", ("今天天气很好。",))["bleu"] == pytest.approx(1.0)


def test_exact_match_and_contains() -> None:
    assert judge_exact_match(" Paris. ", ("paris",)) == {"exact_match": 1.0}
    assert judge_contains("It is 17.", ("7",)) == {"contains": 0.0}
    assert judge_contains("在北京。", ("北京",)) == {"contains": 1.0}


def test_all_judges_are_between_0_and_1_and_1_for_the_reference() -> None:
    for name, judge in JUDGES.items():
        for text in ("今天天气很好，我们去公园。", "We went to the park today, all of us."):
            same, other = judge(text, (text,)), judge("?", (text,))
            assert all(v == pytest.approx(1.0) for v in same.values()), name
            assert all(0.0 <= v <= 0.2 for v in other.values()), name
