"""The demo's last judgement, on numbers that are made up."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from espalier.demo.chain import _exact, answered_right, below, change
from espalier.errors import UserError


def answers(right: int, of: int = 130) -> dict[str, float]:
    return {f"q{i}": float(i < right) for i in range(of)}


def lost(name: str, sft: dict[str, float], after: dict[str, float]) -> str | None:
    return below(name, change(sft, after))


def test_a_stage_that_unlearns_is_named_with_its_numbers() -> None:
    assert lost("ppo", answers(33), answers(14)) == (
        "ppo: -14.6% ± 3.1% of 130 held-out questions answered exactly right, against sft, paired by question"
    )
    assert lost("ppo", answers(33), answers(40)) is None and lost("ppo", answers(33), answers(33)) is None


def test_chance_is_no_loss_and_pairing_sees_what_the_means_cannot() -> None:
    """Five questions lost and none won is beyond chance; a fair swap of many questions that loses five is not."""
    sft = answers(40)
    fewer = sft | {f"q{i}": 0.0 for i in range(5)}
    assert lost("dpo", sft, fewer) is not None
    swapped = sft | {f"q{i}": 0.0 for i in range(25)} | {f"q{i}": 1.0 for i in range(40, 60)}
    assert sum(swapped.values()) == sum(fewer.values())
    assert lost("dpo", sft, swapped) is None


def test_in_many_demos_without_a_change_few_fail() -> None:
    luck = random.Random(0)

    def exam() -> dict[str, float]:
        return {f"q{i}": float(luck.random() < 0.25) for i in range(130)}

    failed = sum(lost("grpo", exam(), exam()) is not None for _ in range(400))
    assert 0 < failed < 400 * 0.05, "one in forty or so fails by chance"


def test_the_order_of_questions_does_not_matter_and_other_questions_are_refused(tmp_path: Path) -> None:
    sft, worse = answers(60), answers(30)
    assert lost("ppo", sft, dict(reversed(worse.items()))) == lost("ppo", sft, worse)
    with pytest.raises(UserError, match=r"other questions \(130 and 129\)"):
        lost("ppo", sft, answers(60, 129))
    folder = tmp_path / "exam_ppo"
    folder.mkdir()
    lines = [f'{{"id": "q{i}", "metrics": {{"exact_match": {float(i < 2)}}}}}\n' for i in range(3)]
    (folder / "demo_exact_match.jsonl").write_text("".join(lines), "utf-8")
    assert _exact(tmp_path, "ppo", "exact") == {"q0": 1.0, "q1": 1.0, "q2": 0.0}


def test_the_last_line_invites_what_the_model_can_answer(tmp_path: Path) -> None:
    asked = {
        "en-0": "What is 1 plus 1?",
        "zh-1": "2+2=？",
        "en-2": "What is 3 plus 3?",
        "en-3": "What is 5 plus 5?",
    }
    file = tmp_path / "exam.jsonl"
    rows = [json.dumps({"id": name, "question": question}) for name, question in asked.items()]
    file.write_text("\n".join(rows), "utf-8")
    assert answered_right(file, {"en-0": 0.0, "zh-1": 1.0, "en-2": 1.0, "en-3": 1.0}) == [
        "2+2=？",
        "What is 3 plus 3?",
    ]
    assert answered_right(file, {"en-0": 0.0}) == []
