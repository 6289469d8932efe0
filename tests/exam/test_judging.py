"""`espalier judge` against a server of the test's own, whose taste is known."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.cli import app, guarded
from espalier.exam.numbers.wins import RIDGE, length_controlled, wins

Taste = Callable[[str, str, str], str]
"""(question, answer A, answer B) -> what the judge says."""

ANSWERS = {
    "first": ["good", "bad", "good", "bad", "bad [[A]]"],
    "second": ["bad", "good, and long", "good", "bad", "good {x}"],
}


class Judge:
    """A server; `asked` holds the messages, `keys` the headers with the key."""

    def __init__(self, taste: Taste) -> None:
        self.taste, self.asked, self.keys = taste, list[str](), set[str | None]()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.keys.add(self.headers["Authorization"])
                assert self.path == "/v1/chat/completions" and body["model"] == "wise"
                text = body["messages"][0]["content"]
                judge.asked.append(text)
                parts = re.search(
                    r"\[Question\]\n(.*)\n\n\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)\n\nGive", text, re.DOTALL
                )
                assert parts is not None
                said = judge.taste(*parts.groups())
                self.send_response(500 if said == "broken" else 200)
                self.end_headers()
                self.wfile.write(json.dumps({"choices": [{"message": {"content": said}}]}).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def judge_of() -> Iterator[Callable[[Taste], Judge]]:
    judges: list[Judge] = []

    def make(taste: Taste) -> Judge:
        judges.append(Judge(taste))
        return judges[-1]

    yield make
    for judge in judges:
        judge.end()


@pytest.fixture
def exams(tmp_path: Path) -> Path:
    """What `evaluate` leaves of two models on one written exam; the last question was left out for the first one."""
    for model, texts in ANSWERS.items():
        (tmp_path / model).mkdir()
        lines = [
            {
                "id": str(i),
                "prefix": None,
                "prompt": f"q{i}",
                "text": text,
                "references": ["r"],
                "metrics": {},
            }
            for i, text in enumerate(texts)
        ]
        lines.append(lines[0] | {"id": "9"} if model == "second" else {"id": "9", "left_out": "long"})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / model / "talks.jsonl").write_text(text, "utf-8")
        tasks = {"talks": {"metrics": {}, "max_new_tokens": 8}, "chosen": {"metrics": {}}}
        results = {"model": model, "tasks": tasks, "prefixes": {}}
        (tmp_path / model / "results.json").write_text(json.dumps(results), "utf-8")
    models = {name: f"runs/{name}" for name in ANSWERS}
    (tmp_path / "compare.json").write_text(json.dumps({"models": models, "pairs": []}), "utf-8")
    return tmp_path


def judged(out: Path, judge: Judge, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    words = ["judge", str(out), "--url", judge.url, "--model", "wise", "--json"]
    assert guarded(lambda: app(words, standalone_mode=False)) == 0
    (row,) = json.loads(capsys.readouterr().out)["pairs"]
    assert json.loads((out / "judge.json").read_text("utf-8"))["pairs"] == [row]
    return dict(row)


def by_content(question: str, a: str, b: str) -> str:
    good = a.startswith("good"), b.startswith("good")
    return "It is [[A]]? No: " + {(True, False): "[[A]]", (False, True): "[[B]]"}.get(good, "[[C]]")


def test_each_pair_is_asked_in_both_orders_once(
    exams: Path,
    judge_of: Callable[[Taste], Judge],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    judge = judge_of(by_content)
    row = judged(exams, judge, capsys)
    assert (row["a"], row["b"], row["n"]) == ("runs/first", "runs/second", 5)
    assert (row["wins"], row["ties"], row["losses"], row["win_rate"]) == (2, 2, 1, pytest.approx(3 / 5))
    assert row["stderr"] == pytest.approx(math.sqrt((0.6**2 + 2 * 0.4**2 + 2 * 0.1**2) / 4 / 5))
    assert row["order_decided"] == row["unreadable"] == 0 and row["unanswered"] == 1
    assert len(judge.asked) == 10 and len(set(judge.asked)) == 8, "equal answers make equal questions"
    first, second = judge.asked[:2]
    assert "[Answer A]\ngood\n" in first and "[Answer A]\nbad\n" in second and "{x}" in judge.asked[-1]
    assert judge.keys == {"Bearer sk-hidden"}
    assert not [
        path for path in exams.rglob("*") if path.is_file() and "sk-hidden" in path.read_text("utf-8")
    ]
    assert judged(exams, judge, capsys) == row and len(judge.asked) == 10, "what is judged is not asked again"
    words = ["judge", str(exams), "--url", judge.url, "--model", "wise"]
    assert guarded(lambda: app(words, standalone_mode=False)) == 0
    assert "talks: runs/second against runs/first" in (said := capsys.readouterr().out) and "0.600±" in said


def test_a_judge_that_follows_the_order_decides_nothing(
    exams: Path, judge_of: Callable[[Taste], Judge], capsys: pytest.CaptureFixture[str]
) -> None:
    row = judged(exams, judge_of(lambda question, a, b: "[[A]]"), capsys)
    assert (row["win_rate"], row["ties"], row["order_decided"]) == (0.5, 5, 5)


def test_a_question_without_a_verdict_is_left_out_and_counted(
    exams: Path, judge_of: Callable[[Taste], Judge], capsys: pytest.CaptureFixture[str]
) -> None:
    row = judged(exams, judge_of(lambda q, a, b: "B" if q == "q1" else by_content(q, a, b)), capsys)
    assert (row["n"], row["unreadable"], row["wins"]) == (4, 1, 1)


def test_what_was_judged_before_an_error_is_kept(
    exams: Path, judge_of: Callable[[Taste], Judge], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = judge_of(by_content)
    judge = judge_of(lambda q, a, b: "broken" if q == "q3" else by_content(q, a, b))
    words = ["judge", str(exams), "--url", judge.url, "--model", "wise"]
    assert guarded(lambda: app(words, standalone_mode=False)) == 2
    assert "the judge answers 500" in " ".join(capsys.readouterr().err.split())
    kept = (exams / "judge.jsonl").read_text("utf-8")
    assert kept.count("\n") == 3
    (exams / "judge.jsonl").write_text(kept + '{"key": "cut o', "utf-8")
    judge.taste = by_content
    before = len(judge.asked)
    row = judged(exams, judge, capsys)
    assert len(judge.asked) - before == 4 and row["n"] == 5
    assert judged(exams, judge, capsys) == row and len(judge.asked) - before == 4
    assert judged(exams, whole, capsys) == row and len(whole.asked) == 10, "another judge is asked anew"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [("http://127.0.0.1:9/v1", "check --url, and that it runs"), ("file:///etc", "wanted http://")],
)
def test_a_judge_that_is_not_there_is_one_message(
    url: str, wanted: str, exams: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["judge", str(exams), "--url", url, "--model", "wise"]
    assert guarded(lambda: app(words, standalone_mode=False)) == 2
    assert wanted in " ".join(capsys.readouterr().err.split())
    (exams / "compare.json").unlink()
    assert guarded(lambda: app(words, standalone_mode=False)) == 2
    assert "no two models with written answers" in " ".join(capsys.readouterr().err.split())


def test_a_taste_for_length_is_taken_out_of_the_win_rate() -> None:
    longer = [40.0] * 30 + [-40.0] * 10
    found = wins([0.9 if x > 0 else 0.1 for x in longer], longer)
    assert found["win_rate"] == pytest.approx(0.7) and found["length_controlled"] == pytest.approx(
        0.5, abs=1e-3
    )
    between = (math.log(0.9 / 0.1) + math.log(0.8 / 0.2)) / 2
    better = length_controlled([0.9 if x > 0 else 0.8 for x in longer], longer)
    assert better == pytest.approx(1 / (1 + math.exp(-between)), abs=1e-3)


@pytest.mark.slow
def test_the_fit_is_the_minimum() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    values, longer = [1.0, 0.0, 0.5, 1.0, 0.0, 1.0], [5.0, -3.0, 0.0, 30.0, 8.0, -2.0]
    length = torch.tanh(torch.tensor(longer) / torch.tensor(longer).std(correction=0)).tolist()

    def loss(weights: Any) -> float:
        t, beta = weights
        logits = [t + beta * x for x in length]
        terms = [math.log1p(math.exp(z)) - y * z for z, y in zip(logits, values, strict=True)]
        return sum(terms) + RIDGE / 2 * float(t**2 + beta**2)

    best = optimize.minimize(loss, [0.0, 0.0], tol=1e-12)
    assert abs(best.x[0]) > 0.05
    assert length_controlled(values, longer) == pytest.approx(1 / (1 + math.exp(-best.x[0])), abs=1e-5)
