"""Lists of rewards in whole runs: what is logged, what is left out, what a continuation pays for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from espalier import config
from espalier.errors import UserError
from espalier.runs.catalogue import CLASSES
from tests.rollout.rewards import served
from tests.stages.conftest import far, rows, run, weights

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def mine(tmp_path: Path) -> Callable[[str], str]:
    """A function's body (``answer``, ``reference``, ``messages``, ``columns``) as ``FILE.py:mine``."""

    def write(body: str) -> str:
        file = tmp_path / "mine.py"
        text = f"import math, os\ndef mine(answer, reference, messages, columns):\n    {body}\n"
        file.write_text(text, "utf-8")
        return f"{file}:mine"

    return write


def listed(chosen: dict[str, Any], *rewards: Any, **changes: Any) -> dict[str, Any]:
    """The options with these rewards in place of their own."""
    return {k: v for k, v in chosen.items() if k not in ("reward_model", "reward_function")} | {
        "rewards": list(rewards),
        **changes,
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_models_and_rules_add_up_and_each_is_logged(
    stage: str, options: Make, world: Path, mine: Callable[[str], str]
) -> None:
    judge = {"type": "model", "path": str(world / "judge"), "weight": 0.5, "name": "likes"}
    own = mine("return len(answer) % 3 + len(messages) + (reference is not None)")
    chosen = listed(
        options(stage, max_steps=2), judge, {"type": "brevity", "weight": 3}, {"type": own, "weight": -1}
    )
    run(chosen)
    for row in rows(chosen):
        key = "eval_" if "eval_reward" in row else ""
        parts = [row[f"{key}reward/{name}"] for name in ("likes", "brevity", "mine")]
        assert row[f"{key}reward"] == pytest.approx(0.5 * parts[0] + 3 * parts[1] - parts[2], abs=1e-5)
        assert parts[1] < 0 and parts[2] >= 1 and "reward_failures" not in row
    assert len(rows(chosen)) == 4


@pytest.mark.slow
def test_a_short_form_is_a_list_of_one(options: Make, world: Path) -> None:
    short = options("ppo", name="short", max_steps=1, eval_dataset=[])
    assert short["reward_model"] == entry_of(world)["path"]
    listed_one = listed(short, entry_of(world), name="list")
    doubled = listed(short, {**entry_of(world), "weight": 2}, name="doubled")
    for chosen in (short, listed_one, doubled):
        run(chosen)
    assert far(weights(short), weights(listed_one)) == 0.0
    assert far(weights(short), weights(doubled)) > 0.0


def entry_of(world: Path) -> dict[str, Any]:
    return {"type": "model", "path": str(world / "judge")}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "ppo"])
@pytest.mark.parametrize("body", ["return None if len(answer) % 2 else 1.0", "return math.nan if len(answer) % 2 else 1.0",
                                  "return {}['surprise'] if len(answer) % 2 else len(answer)"])  # fmt: skip
def test_a_run_goes_on_without_the_answers_that_fail(
    stage: str, body: str, options: Make, mine: Callable[[str], str]
) -> None:
    chosen = listed(options(stage, max_steps=2), mine(body), "brevity", on_reward_failure="skip")
    summary = run(chosen)
    assert summary["status"] == "done"
    steps = [row for row in rows(chosen) if "loss" in row]
    assert len(steps) == 2
    sampled = 8 * chosen["group_size"]
    for row in steps:
        assert 0 < row["reward_failures"] < sampled and row["reward_failures"] == int(row["reward_failures"])
    (note,) = [note for note in summary["notes"] if "reward_failures counts them" in note]
    assert "mine.py:mine" in note and "prompts" in note and "is left out" in note


def test_none_with_a_reward_ends_the_run_whatever_was_told(options: Make, mine: Callable[[str], str]) -> None:
    chosen = listed(options("grpo", max_steps=2), mine("return None"), on_reward_failure="skip")
    with pytest.raises(
        UserError, match=r"none of the \d+ answers of this rollout has a reward: .*returned None"
    ):
        run(chosen)


@pytest.mark.slow
def test_a_reward_sees_messages_and_columns_of_the_record(
    options: Make, tmp_path: Path, mine: Callable[[str], str]
) -> None:
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3=?"}]
    file = tmp_path / "told.jsonl"
    row = {"messages": told, "answer": "5", "level": {"deep": [1, "é"]}, "tests": ["assert x == 5"]}
    file.write_text(json.dumps(row) + "\n", "utf-8")
    seen = f"return float([messages, reference, columns] == [{told!r}, '5', { ({k: row[k] for k in ('answer', 'level', 'tests')})!r}])"
    data = {"dataset": [str(file)], "eval_dataset": [str(file)]}
    chosen = listed(
        options("grpo", max_steps=1, **data), mine(seen), "brevity", {"type": "unit_tests", "seconds": 5}
    )
    run(chosen)
    assert all(row[key] == 1.0 for row in rows(chosen) for key in row if key.endswith("reward/mine"))
    missing = listed(options("grpo", name="other", **data), {"type": "unit_tests", "column": "test"})
    with pytest.raises(
        UserError, match=r"told.jsonl:1: .* wants the column 'test', and this record has answer, level, tests"
    ):
        run(missing)


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a judge that is down for its first five questions, and what it was asked."""
    log = tmp_path / "asked.jsonl"
    words = [sys.executable, served.__file__, str(log), "5"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log
    process.kill()
    process.communicate()


def asked_of(log: Path) -> list[str]:
    return [json.loads(line)["text"] for line in log.read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_a_judge_is_waited_for_and_paid_once(
    options: Make, judge: tuple[str, Path], mine: Callable[[str], str]
) -> None:
    url, log = judge
    entry = {"type": "judge", "url": url, "model": "wise", "wait": 0.01, "parallel": 1, "weight": 2}
    # The second reward fails in the second rollout, after the judge has been paid for it.
    own = mine("return 1.0 if os.path.exists(os.path.dirname(__file__) + '/go') or len(open("
               "os.path.dirname(__file__) + '/asked.jsonl').readlines()) < 20 else None")  # fmt: skip
    small = {
        "group_size": 2,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "save_steps": 1,
        "eval_steps": 0,
    }
    chosen = listed(options("grpo", **small, eval_dataset=[]), entry, {"type": own, "name": "gate"})
    with pytest.raises(UserError, match="returned None"):
        run(chosen)
    paid = asked_of(log)
    assert len(paid) - 5 == len(set(paid)) > 8, "each question was answered once"
    (Path(own.rpartition(":")[0]).parent / "go").touch()
    assert run(chosen)["status"] == "done"
    later = asked_of(log)[len(paid) :]
    assert later and not set(later) & set(paid), "what was answered before the end is not asked again"
    kept = Path(chosen["output_dir"]) / "grpo" / "judged.jsonl"
    assert len(kept.read_text("utf-8").splitlines()) == len(set(paid)) + len(later)


def test_what_is_wrong_with_rewards_is_said_before_anything_is_loaded(
    options: Make, world: Path, tmp_path: Path
) -> None:
    for changes, said in (
        ({"rewards": []}, "`rewards` wants a list with one reward or more"),
        ({"rewards": [{"type": "equals"}], "reward_function": "brevity"}, "`rewards`, which stands alone"),
        ({"reward_function": "nonsense"}, "  reward_function: unknown rule 'nonsense'. Known: equals, contains"),
        ({"rewards": [{"type": "equal"}]}, "entry 1: unknown rule 'equal'. .*Did you mean `equals`"),
        ({"rewards": ["brevity", {"type": "model"}, {"type": "length"}]}, r"2 options are wrong:(.|\n)*entry 2 \(model\).*(.|\n)*entry 3 \(length\)"),
        ({"rewards": [f"{tmp_path}/none.py:f"]}, "there is no file"),
        ({"reward_function": "brevity", "reward_retokenize": True}, "`reward_retokenize` is about a `reward_model`"),
        ({"rewards": [{"type": "model", "path": str(tmp_path / "none")}]}, "there is no such folder"),
    ):  # fmt: skip
        chosen = {k: v for k, v in options("grpo").items() if k != "reward_function"} | changes
        with pytest.raises(UserError, match=said):
            run(chosen)
    built = config.build(
        config.RawConfig(listed(options("grpo"), "brevity")), CLASSES["grpo"], all_classes=CLASSES
    )
    again = config.dump_yaml(built)
    assert "rewards:" in again
