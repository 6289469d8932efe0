"""Votes as records: what is written is what training reads, and a stage trains on the file at once."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from espalier import cli
from espalier.data.read.rows import parse_row
from espalier.data.records import ASSISTANT, SYSTEM, USER, LeftOut, Message, Record
from espalier.errors import UserError
from espalier.models.open import open_model
from espalier.serve.contest import Contest
from espalier.serve.model import ServedModel
from espalier.serve.requests import EngineLimits
from espalier.serve.session import Session
from espalier.serve.settings import AnswerSettings
from espalier.serve.votes import Vote, Voted, append_record, vote_record
from tests.serve.conftest import make_model

PROMPT = [Message(SYSTEM, "Be brief."), Message(USER, "一"), Message(ASSISTANT, "x"), Message(USER, "二")]


def sides(a: str = "左", b: str = "右") -> tuple[Voted, Voted]:
    first = Voted("one", {"temperature": 0.5}, Message(ASSISTANT, a), score=1.5)
    return first, Voted("two", {"temperature": 1.0, "seed": 3}, Message(ASSISTANT, b), score=-2.0)


@pytest.mark.parametrize(("vote", "better", "worse"), [("a", "左", "右"), ("b", "右", "左")])
def test_a_vote_is_read_as_a_pair(vote: Vote, better: str, worse: str) -> None:
    row = vote_record(PROMPT, sides(), vote)
    record = parse_row(json.loads(json.dumps(row)), "votes.jsonl:1", "preference")
    assert isinstance(record, Record) and list(record.prompt) == PROMPT
    assert [answer.messages[0].content for answer in record.answers] == [better, worse]
    chosen = "one" if vote == "a" else "two"
    assert row["models"]["chosen"] == chosen != row["models"]["rejected"]
    assert row["settings"]["chosen"]["temperature"] == (0.5 if vote == "a" else 1.0)
    assert row["reward_scores"]["chosen"] == (1.5 if vote == "a" else -2.0)


def test_a_tie_is_no_pair_and_counted() -> None:
    row = vote_record(PROMPT, sides(), "tie")
    assert row["models"] == ["one", "two"]
    for kind in ("preference", "ranking"):
        assert isinstance(parse_row(row, "votes.jsonl:1", kind), LeftOut)


@pytest.mark.parametrize(("a", "b", "said"), [("左", "左", "the same"), ("左", " ", "empty")])
def test_what_nothing_can_be_learned_from_is_refused(a: str, b: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        vote_record(PROMPT, sides(a, b), "a")


def test_a_half_line_of_a_killed_writer_is_ended_first(tmp_path: Path) -> None:
    file = tmp_path / "new" / "votes.jsonl"
    append_record(file, {"字": 1})
    file.write_text(file.read_text("utf-8") + '{"half', "utf-8")
    append_record(file, {"b": 2})
    assert file.read_text("utf-8") == '{"字": 1}\n{"half\n{"b": 2}\n'


@pytest.fixture(scope="module")
def rival(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = make_model(tmp_path_factory.mktemp("rival") / "model", num_hidden_layers=1)
    return ServedModel("rival", open_model(str(folder), device="cpu"), limits=EngineLimits(0, rows=2))


def contest(served: ServedModel, rival: ServedModel, file: Path, order: int = 0) -> Contest:
    settings = AnswerSettings(max_new_tokens=8, temperature=1.0, seed=4)
    return Contest(Session(served, settings), rival, file, random.Random(order))


def test_both_answer_one_question_and_the_talk_goes_on_with_the_better(
    served: ServedModel, rival: ServedModel, tmp_path: Path
) -> None:
    orders = set()
    for order in range(6):
        held = contest(served, rival, tmp_path / "votes.jsonl", order)
        said = {"a": "", "b": ""}
        for label, _, more in held.ask("你好"):
            said[label] += more
        assert said["a"] != said["b"] and held.complete
        names = held.vote("b")
        orders.add(names)
        assert [m.content for m in held.session.messages] == ["你好", said["b"]]
        assert not held.complete
    assert orders == {("tiny", "rival"), ("rival", "tiny")}  # nobody knows before
    rows = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text("utf-8").splitlines()]
    assert {(row["models"]["rejected"], row["models"]["chosen"]) for row in rows} == orders
    mine = Session(served, AnswerSettings(max_new_tokens=8, temperature=1.0, seed=4))
    alone = "".join(text for _, text in mine.ask("你好"))
    first = rows[0]
    place = "chosen" if first["models"]["chosen"] == "tiny" else "rejected"
    assert first[place][0]["content"] == alone and first["settings"][place]["seed"] == 4


def test_a_model_beside_itself_says_two_things(served: ServedModel, tmp_path: Path) -> None:
    held = contest(served, served, tmp_path / "votes.jsonl")
    list(held.ask("Hello"))
    held.vote("a")
    (row,) = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text("utf-8").splitlines()]
    assert row["settings"]["chosen"]["seed"] != row["settings"]["rejected"]["seed"]


def test_what_was_forgotten_cannot_be_voted_on(
    served: ServedModel, rival: ServedModel, tmp_path: Path
) -> None:
    held = contest(served, rival, tmp_path / "votes.jsonl")
    list(held.ask("Hello"))
    held.session.clear()
    with pytest.raises(UserError, match="no two answers"):
        held.vote("a")
    assert not (tmp_path / "votes.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_training_reads_the_votes_at_once(
    folder: Path, served: ServedModel, rival: ServedModel, tmp_path: Path, stage: str
) -> None:
    held = contest(served, rival, tmp_path / "votes.jsonl")
    for number in range(6):
        list(held.ask(f"Hello {number}"))
        held.vote("tie" if number == 3 else "a")
    options = {"stage": stage, "model_name_or_path": str(folder), "dataset": str(tmp_path / "votes.jsonl")}
    options |= {"output_dir": str(tmp_path / "run"), "cutoff_len": 256, "max_steps": 1, "logging_steps": 1}
    options |= {"precision": "fp32", "samples": 0}
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(options), "utf-8")
    words = ["run", str(tmp_path / "stage.yaml")]
    assert cli.guarded(lambda: cli.app(words, standalone_mode=False)) == 0
    summary = json.loads((tmp_path / "run" / stage / "summary.json").read_text("utf-8"))
    left = {row["cause"]: row["count"] for row in summary["preflight"]["left_out"]}
    assert summary["status"] == "done" and left == {"all answers score the same": 1}
