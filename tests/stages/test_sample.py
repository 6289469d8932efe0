"""Answers as records: what is written of a prompt, a pipeline of sampling and DPO, and the same start again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier import cli
from espalier.data.read.rows import parse_row
from espalier.data.records import Message, Record
from espalier.errors import UserError
from espalier.rollout.asked import Ask
from espalier.rollout.experience import AnswerGroup
from espalier.runs.pipeline import ALL_CLASSES
from espalier.runs.sample import Sampled, SampleOptions, record_of, run_sample
from espalier.stages.setup import Setup
from espalier.trees import Tree
from tests.stages.conftest import rows

Make = Callable[..., dict[str, Any]]
PROMPT = Record("prompt", (Message("system", "Be brief."), Message("user", "2+3=?")), source="a.jsonl:1")


def group(texts: list[str], ended: list[bool]) -> AnswerGroup:
    return AnswerGroup(Ask([1], "2+3=?"), Tree.join([([1, 2], [False, True])] * len(texts)), texts, ended)


def test_what_is_written_is_read_again_as_what_it_is() -> None:
    texts, scores = ["6", "5", "five, I think", "5", "5 and on"], [0.0, 1.0, 0.5, 1.0, 9.0]
    made = group(texts, [True, True, True, True, False])
    for form, kind in (("preference", "preference"), ("ranking", "preference"), ("sft", "chat")):
        tally = Sampled()
        row = record_of(PROMPT, made, scores, SampleOptions(sample_as=form), tally)
        record = parse_row(json.loads(json.dumps(row)), "x.jsonl:1", kind)
        assert isinstance(record, Record)
        said = [answer.messages[-1].content for answer in record.answers]
        wanted = {"preference": ["5", "6"], "ranking": ["5", "five, I think", "6"], "sft": ["5"]}
        assert said == wanted[form] and record.messages[:2] == PROMPT.prompt
        if form != "sft":
            assert [answer.score for answer in record.answers] == (
                [1.0, 0.0] if form == "preference" else [1.0, 0.5, 0.0]
            )
        assert (tally.written, tally.unfinished, tally.answers) == (1, 1, 5)
    assert tally.as_json()["best_of"] == {"1": 0.0, "2": 1.0, "4": 1.0, "5": 9.0}


def test_an_answer_without_a_reward_is_not_written_and_counted() -> None:
    tally, none = Sampled(), float("nan")
    row = record_of(PROMPT, group(["6", "5", "7"], [True] * 3), [0.0, none, 1.0], SampleOptions(), tally)
    assert row is not None and row["chosen"][0]["content"] == "7" and row["rejected"][0]["content"] == "6"
    assert tally.reward_failures == 1 and tally.best_of == {1: 0.0, 2: 1.0}
    assert record_of(PROMPT, group(["6", "5"], [True] * 2), [none, none], SampleOptions(), tally) is None
    assert tally.left_out == {"whose answers have no reward": 1}


@pytest.mark.parametrize(
    ("texts", "ended", "scores", "keys", "cause"),
    [
        (["a", "b"], [False, False], [1, 0], {}, "without a whole answer"),
        (["a", "b"], [True, True], [1, 1], {}, "whose answers all score the same"),
        (["a", "b"], [True, False], [1, 0], {}, "whose answers all score the same"),
        (["a", "b"], [True, True], [0.4, 0], {"min_score": 0.5}, "without an answer that scores min_score"),
        (["", " "], [True, True], [1, 0], {"sample_as": "sft"}, "without a whole answer"),
    ],
)
def test_prompts_that_teach_nothing_are_left_out_and_counted(
    texts: list[str], ended: list[bool], scores: list[float], keys: dict[str, Any], cause: str
) -> None:
    tally = Sampled()
    assert record_of(PROMPT, group(texts, ended), scores, SampleOptions(**keys), tally) is None
    assert tally.left_out == {cause: 1} and tally.written == 0


@pytest.mark.slow
def test_sampling_judging_and_training_as_a_pipeline(
    options: Make,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Online DPO of two rounds; again, everything is skipped; what was changed by hand is not written over."""
    stop = Setup.stop.fget  # an untrained model never ends an answer: each fifth token does here
    assert stop is not None
    monkeypatch.setattr(Setup, "stop", property(lambda setup: (*stop(setup), *range(0, 400, 5))))
    rule = tmp_path / "rule.py"
    rule.write_text("def rule(prompt, answer, reference):\n    return float(len(answer))\n", "utf-8")
    shared = options("grpo", reward_function=f"{rule}:rule", max_new_tokens=8, group_size=6, temperature=1.5)
    for key in ("stage", "dataset", "eval_dataset", "model_name_or_path"):
        del shared[key]
    ends = {"rollout_prompts": 10, "dataset": [str(world / "prompts.jsonl")]}
    dpo = {"stage": "dpo", "max_steps": 2, "samples": 0}
    pipeline = {**shared, "stages": [
        {"name": "first", "stage": "sample", "model_name_or_path": str(world / "base"), **ends},
        {"name": "one", **dpo, "model_name_or_path": str(world / "base"), "dataset": ["run:first/records.jsonl"]},
        {"name": "second", "stage": "sample", "model_name_or_path": "run:one", **ends, "sample_as": "ranking"},
        {"name": "two", "stage": "reward", "max_steps": 1, "model_name_or_path": "run:one",
         "dataset": ["run:second/records.jsonl"]},
    ]}  # fmt: skip
    file = tmp_path / "online.yaml"
    file.write_text(json.dumps(pipeline), "utf-8")
    for words in (["inspect", str(file)], ["run", str(file)]):
        assert cli.guarded(lambda words=words: cli.app(words, standalone_mode=False)) == 0
    told = capsys.readouterr()
    assert "one: an earlier stage makes its data" in told.out + told.err
    folder = Path(shared["output_dir"])
    said = json.loads((folder / "first" / "sampled.json").read_text("utf-8"))
    written = [
        json.loads(line) for line in (folder / "first" / "records.jsonl").read_text("utf-8").splitlines()
    ]
    assert said["prompts"] == 24 and said["answers"] == 144 and said["written"] == len(written) > 4
    assert said["written"] + sum(said["left_out"].values()) == 24
    assert said["best_of"]["1"] < said["best_of"]["6"]
    assert all(len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in written)
    assert all(row["margin"] > 0 for row in written)
    assert all(rows({"output_dir": folder, "name": name, "stage": ""}) for name in ("one", "two"))

    assert cli.guarded(lambda: cli.app(["run", str(file)], standalone_mode=False)) == 0
    assert capsys.readouterr().err.count("done already") == 4
    changed = {**shared, **pipeline["stages"][0]}
    with pytest.raises(UserError, match=r"made with other options.*\n.*max_new_tokens: 8 -> 7"):
        run_sample(changed | {"max_new_tokens": 7}, ALL_CLASSES)
    alone = tmp_path / "alone.yaml"
    alone.write_text(json.dumps(changed | {"output_dir": str(tmp_path / "alone"), "name": "mine"}), "utf-8")
    assert cli.guarded(lambda: cli.app(["sample", str(alone)], standalone_mode=False)) == 0
    same = (tmp_path / "alone" / "mine" / "records.jsonl").read_text("utf-8")
    assert same == (folder / "first" / "records.jsonl").read_text("utf-8")
    (folder / "first" / "records.jsonl").write_text("mine\n", "utf-8")
    with pytest.raises(UserError, match=r"records\.jsonl has another size.*would be written over"):
        run_sample(changed, ALL_CLASSES)


@pytest.mark.slow
def test_nothing_to_write_is_one_error(options: Make) -> None:
    chosen = options("grpo", reward_function="brevity", min_score=5.0, max_new_tokens=2) | {"stage": "sample"}
    with pytest.raises(UserError, match=r"no record was written of 24 prompts: 24 without.*raise group_size"):
        run_sample({k: v for k, v in chosen.items() if k != "eval_dataset"}, ALL_CLASSES)
