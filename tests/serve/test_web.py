"""The page's program: what it answers, who may ask, what votes become, how runs are read. No browser is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs espalier-llm[web]")

from starlette.testclient import TestClient

from espalier import cli
from espalier.data.read.rows import parse_row
from espalier.data.records import USER, Message, Record
from espalier.errors import UserError
from espalier.models.open import open_model
from espalier.serve.http.app import Served
from espalier.serve.http.limits import HttpLimits
from espalier.serve.model import ServedModel
from espalier.serve.requests import EngineLimits
from espalier.serve.scorer import ServedScorer
from espalier.serve.session import Session
from espalier.serve.settings import AnswerSettings
from espalier.serve.web.runs import RunShelf, thinned
from espalier.serve.web.site import PAGE, Site, make_site
from tests.serve.conftest import make_model

QUESTION = [{"role": "user", "content": "你好"}]


@pytest.fixture(scope="module")
def writers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServedModel]]:
    other = make_model(tmp_path_factory.mktemp("second") / "model", num_hidden_layers=1)
    opened = {"first": str(folder), "second": str(other)}
    made = {
        name: ServedModel(name, open_model(place, device="cpu"), limits=EngineLimits(0, rows=4))
        for name, place in opened.items()
    }
    yield made
    for model in made.values():
        model.close()


@pytest.fixture(scope="module")
def scorer(reward_folder: Path) -> ServedScorer:
    return ServedScorer("judge", open_model(str(reward_folder), device="cpu"))


def client(
    writers: dict[str, ServedModel], tmp_path: Path, scorer: ServedScorer | None = None, **limits: Any
) -> TestClient:
    served = Served(writers, {} if scorer is None else {"judge": scorer}, limits=HttpLimits(**limits))
    site = Site(served, tmp_path / "votes.jsonl", RunShelf((tmp_path,)))
    return TestClient(make_site(site), base_url="http://localhost")


def asked(page: TestClient, *models: str, **more: Any) -> list[dict[str, Any]]:
    body = {
        "models": list(models),
        "messages": QUESTION,
        "settings": {"max_new_tokens": 8, "seed": 3},
        **more,
    }
    response = page.post("/web/ask", json=body)
    assert response.status_code == 200, response.text
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def text(events: list[dict[str, Any]], side: int = 0) -> str:
    return "".join(e["text"] for e in events if e.get("side") == side and e.get("kind") == "answer")


def test_the_page_needs_nothing_from_elsewhere(writers: dict[str, ServedModel], tmp_path: Path) -> None:
    page = client(writers, tmp_path)
    response = page.get("/")
    assert response.status_code == 200 and "default-src 'self'" in response.headers["content-security-policy"]
    assert 'data-language="auto"' in response.text
    wanted = re.findall(r'(?:href|src)="(/[^"]+)"', response.text)
    assert len(wanted) >= 3
    for path in [*wanted, "/page/words.json", "/page/chart.js", "/page/runs.js", "/page/chat.js"]:
        assert page.get(path).status_code == 200, path
    for file in PAGE.iterdir():
        addresses = set(re.findall(r"https?://[^\"' ]+", file.read_text("utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file
    scripts = "".join(file.read_text("utf-8") for file in PAGE.glob("*.js"))
    assert "innerHTML" not in scripts and "eval(" not in scripts  # what a model writes is text


def test_every_word_of_the_page_has_a_chinese_one() -> None:
    words = json.loads((PAGE / "words.json").read_text("utf-8"))["zh"]
    used = set(re.findall(r'data-(?:say|hint)="([^"]+)"', (PAGE / "index.html").read_text("utf-8")))
    scripts = "".join(file.read_text("utf-8") for file in PAGE.glob("*.js"))
    used |= set(re.findall(r'\bsay\("([^"]+)"', scripts)) | set(re.findall(r'\bhead\("([^"]+)"', scripts))
    assert len(used) > 25 and used <= set(words)
    assert {word for word in words if f'"{word}"' not in scripts and word not in used} <= {
        "running", "failed", "waiting", "unfinished", "max_new_tokens", "temperature", "repetition_penalty", "seed"
    }  # fmt: skip
    for english, chinese in words.items():
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese)), english


def test_an_answer_streams_and_is_the_core_s_own(writers: dict[str, ServedModel], tmp_path: Path) -> None:
    events = asked(client(writers, tmp_path), "first")
    assert events[0] == {"names": ["first"]} and sum("text" in event for event in events) > 1
    mine = Session(writers["first"], AnswerSettings(max_new_tokens=8, seed=3))
    assert text(events) == "".join(more for _, more in mine.ask("你好")) != ""
    assert [event["end"] for event in events if "end" in event] == [mine.ended]
    assert not any("vote" in event for event in events)


def test_two_models_are_voted_on_blind(
    writers: dict[str, ServedModel], scorer: ServedScorer, tmp_path: Path
) -> None:
    page, orders = client(writers, tmp_path, scorer), set()
    for _ in range(12):
        events = asked(page, "first", "second", blind=True, scorer="judge")
        assert not {"first", "second"} & set(re.findall(r"\w+", json.dumps(events)))
        (name,) = [event["vote"] for event in events if "vote" in event]
        told = page.post("/web/vote", json={"id": name, "vote": "b"}).json()
        orders.add((told["a"], told["b"]))
        row = json.loads((tmp_path / "votes.jsonl").read_text("utf-8").splitlines()[-1])
        assert row["chosen"][0]["content"] == text(events, 1) != text(events, 0)
        assert row["rejected"][0]["content"] == text(events, 0)
        assert (row["models"]["rejected"], row["models"]["chosen"]) == (told["a"], told["b"])
        said = [
            event["score"] for event in sorted(events, key=lambda e: e.get("side", 0)) if "score" in event
        ]
        prompt = [Message(USER, "你好")]
        assert said == pytest.approx([scorer.score(prompt, [text(events, side)])[0] for side in (0, 1)])
        assert [row["reward_scores"]["rejected"], row["reward_scores"]["chosen"]] == said
    assert orders == {("first", "second"), ("second", "first")}
    assert isinstance(parse_row(row, "votes.jsonl:1", "preference"), Record)
    assert page.post("/web/vote", json={"id": name, "vote": "a"}).status_code == 404  # once only
    assert page.post("/web/vote", json={"id": name, "vote": "c"}).status_code == 400


def test_a_vote_names_the_seed_that_gives_the_answer_again(
    writers: dict[str, ServedModel], tmp_path: Path
) -> None:
    page = client(writers, tmp_path)
    for _ in range(20):  # no seed is asked for, and an answer that is empty cannot be voted on
        events = asked(page, "first", "first", settings={"max_new_tokens": 8})
        assert events[0] == {"names": ["first", "first"]}
        (name,) = [event["vote"] for event in events if "vote" in event]
        if page.post("/web/vote", json={"id": name, "vote": "a"}).status_code == 200:
            break
    row = json.loads((tmp_path / "votes.jsonl").read_text("utf-8"))
    for place in ("chosen", "rejected"):
        assert text(asked(page, "first", settings=row["settings"][place])) == row[place][0]["content"]
    assert row["chosen"] != row["rejected"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": {"temperature": -1}}, "temperature"),
        ({"settings": {"tempo": 1}}, "tempo"),
        ({"models": ["third"]}, "third"),
        ({"models": []}, "models"),
        ({"messages": []}, "at least one turn"),
        ({"scorer": "nobody"}, "reward model"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(
    writers: dict[str, ServedModel], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    body = {"models": ["first"], "messages": QUESTION, **change}
    response = client(writers, tmp_path).post("/web/ask", json=body)
    assert response.status_code in (400, 404) and said in response.json()["error"]["message"]


def test_only_who_has_the_password_sees_more_than_the_page(
    writers: dict[str, ServedModel], tmp_path: Path
) -> None:
    page = client(writers, tmp_path, keys=("open sesame",))
    assert page.get("/").status_code == page.get("/page/page.js").status_code == 200
    body = {"models": ["first"], "messages": QUESTION, "settings": {"max_new_tokens": 2}}
    for headers, status in [
        ({}, 401),
        ({"Authorization": "Bearer x"}, 401),
        ({"Authorization": "Bearer open sesame"}, 200),
    ]:
        for path in ("/web/about", "/web/runs"):
            assert page.get(path, headers=headers).status_code == status, path
        assert page.post("/web/ask", json=body, headers=headers).status_code == status


def test_another_web_page_cannot_ask_through_the_user_s_browser(
    writers: dict[str, ServedModel], tmp_path: Path
) -> None:
    page = client(writers, tmp_path, only_loopback=True)
    assert page.get("/web/about").status_code == 200
    assert page.get("/web/about", headers={"Host": "evil.example"}).status_code == 403
    # What a form of another page may send without asking first is no JSON by its type.
    body = json.dumps({"models": ["first"], "messages": QUESTION})
    assert page.post("/web/ask", content=body, headers={"Content-Type": "text/plain"}).status_code == 400
    assert (
        "access-control-allow-origin"
        not in page.options("/web/ask", headers={"Origin": "http://evil.example"}).headers
    )


def write_run(run: Path, steps: int, status: str) -> None:
    (run / "sft").mkdir(parents=True, exist_ok=True)
    rows = [
        {"step": s, "epoch": 0.1, "loss": 3 / s, "eval_loss": None if s % 2 else 2 / s}
        for s in range(1, steps + 1)
    ]
    half = '{"step": 99, "lo'  # a run that is being written
    (run / "sft" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n" + half, "utf-8")
    summary = {"stage": "sft", "status": status, "total_steps": 10}
    (run / "sft" / "summary.json").write_text(json.dumps(summary), "utf-8")
    sample = {"step": steps, "prompt": "问", "completion": "答"}
    (run / "sft" / "samples.jsonl").write_text(json.dumps(sample) + "\n", "utf-8")


def test_a_run_is_seen_while_it_grows(writers: dict[str, ServedModel], tmp_path: Path) -> None:
    page = client(writers, tmp_path)
    write_run(tmp_path / "group" / "one", 3, "running")
    write_run(tmp_path / "two", 10, "done")
    listed = {row["name"]: row["status"] for row in page.get("/web/runs").json()}
    assert listed == {"group/one": "running", "two": "done"}
    first = page.get("/web/runs/group/one")
    (stage,) = first.json()["stages"]
    assert stage["curves"]["loss"] == [[1, 3.0], [2, 1.5], [3, 1.0]] and stage["curves"]["eval_loss"] == [
        [2, 1.0]
    ]
    assert (stage["steps"], stage["total"], stage["samples"][0]["completion"]) == (3, 10, "答")
    known = {"If-None-Match": first.headers["etag"]}
    assert page.get("/web/runs/group/one", headers=known).status_code == 304
    write_run(tmp_path / "group" / "one", 5, "done")
    later = page.get("/web/runs/group/one", headers=known)
    assert later.status_code == 200 and len(later.json()["stages"][0]["curves"]["loss"]) == 5
    for outside in ("../two", "..%2ftwo", "nothing", "%2fetc"):
        assert page.get(f"/web/runs/{outside}").status_code == 404


def test_exams_stand_in_one_table_and_hide_no_run_beside_them(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 2, "done")
    (tmp_path / "exam").mkdir()
    task = {"n": 4, "shots": 0, "metrics": {"accuracy": 0.75, "accuracy_stderr": 0.1}}
    results = {"model": "m", "tasks": {"sums": task}}
    (tmp_path / "exam" / "results.json").write_text(json.dumps(results), "utf-8")
    shelf = RunShelf((tmp_path,))
    assert set(shelf.found()) == {"run", "exam"}
    _, view = shelf.shown("exam")
    assert view is not None and view["exams"]["models"] == ["m, zero-shot"]
    assert view["exams"]["tasks"][0]["scores"] == [{"text": "0.750±0.100", "best": False}]
    assert set(RunShelf((tmp_path / "run",)).found()) == {"run"}
    with pytest.raises(UserError, match="no run 'x'"):
        shelf.shown("x")


def test_a_long_curve_keeps_its_spikes() -> None:
    points = [(float(step), 100.0 if step == 4321 else step % 7) for step in range(20_000)]
    kept = thinned(points, 500)
    assert len(kept) <= 501 and (4321.0, 100.0) in kept and kept == sorted(kept)
    assert kept[-1] == points[-1]
    assert thinned(points[:500], 500) == points[:500]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to show"),
        (["--runs", "nowhere"], "no such folder"),
        (["m", "--password", "密码"], "ASCII"),
        (["a/m", "b/m"], "two models are called 'm'"),
    ],
)
def test_what_cannot_be_shown_is_said(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.guarded(lambda: cli.app(["web", *words], standalone_mode=False)) == 2
    assert said in capsys.readouterr().err
