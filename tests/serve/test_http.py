"""A real server process, asked by OpenAI's own client, by a plain reader of events, and by those who misbehave."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

from tests import processes  # noqa: E402

pytestmark = pytest.mark.slow
ENDLESS = {"logit_bias": {"2": -100}}
"""The tiny model's end token never comes."""


class Server:
    """A server in a process of its own."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "espalier.cli", "serve", *words, "--port", "0"]
        self.process = processes.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"listening on (http://\S+)/v1", line):
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(self.said))
        self.http = httpx.Client()
        # Else a full pipe would hold the server up.
        self.reader = threading.Thread(
            target=lambda: self.said.extend(self.process.stderr or ()), daemon=True
        )
        self.reader.start()

    def client(self, key: str = "none") -> Any:
        return openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0)

    def post(self, path: str, body: Any, **how: Any) -> Any:
        return httpx.post(self.url + path, json=body, timeout=60, **how)

    def metric(self, name: str) -> float:
        text = self.http.get(self.url + "/metrics").text
        return float(re.search(rf"^espalier_{name}{{[^}}]*}} (\S+)$", text, re.M)[1])  # type: ignore[index]

    def wait(self, name: str, value: float) -> None:
        until = time.monotonic() + 10
        while self.metric(name) != value:
            assert time.monotonic() < until, (name, self.metric(name))
            time.sleep(0.02)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    words = tmp_path_factory.mktemp("words") / "words.json"
    words.write_text(json.dumps(["today"]), "utf-8")
    made = Server(f"tiny={folder}", "--parallel", "4", "--queue", "4", "--profanity", str(words))
    yield made
    assert made.end() == 0, made.said


USER = [{"role": "user", "content": "你好"}]


def test_openais_client_gets_its_answer(server: Server) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    made = client.chat.completions.create(
        model="tiny",
        messages=USER,
        max_tokens=9,
        seed=5,
        n=2,
        logprobs=True,
        top_logprobs=2,
        extra_body=ENDLESS,
    )
    assert [choice.finish_reason for choice in made.choices] == ["length", "length"]
    assert made.usage.completion_tokens == 18 and made.usage.total_tokens == 18 + made.usage.prompt_tokens
    first = made.choices[0]
    assert len(first.logprobs.content) == 9 and len(first.logprobs.content[0].top_logprobs) == 2
    raw = b"".join(bytes(token.bytes) for token in first.logprobs.content)
    assert raw.decode("utf-8", "replace").startswith(first.message.content)
    again = client.chat.completions.create(
        model="tiny", messages=USER, max_tokens=9, seed=5, extra_body=ENDLESS
    )
    assert again.choices[0].message.content == first.message.content != made.choices[1].message.content


def test_a_stream_is_the_whole_answer(server: Server) -> None:
    client = server.client()
    how: dict[str, Any] = {
        "model": "tiny",
        "messages": USER,
        "max_tokens": 12,
        "seed": 3,
        "n": 2,
        "extra_body": ENDLESS,
    }
    whole = client.chat.completions.create(**how)
    texts, reasons, usage = ["", ""], [None, None], None
    for chunk in client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
        usage = chunk.usage
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == ["length", "length"] and usage.total_tokens == whole.usage.total_tokens
    # The same prompt was read before: in whole blocks, and its last token is always read.
    assert usage.prompt_tokens_details.cached_tokens == (usage.prompt_tokens - 1) // 16 * 16 > 0


def test_a_stop_text_ends_the_answer(server: Server) -> None:
    client = server.client()
    how: dict[str, Any] = {"model": "tiny", "messages": USER, "temperature": 0, "extra_body": ENDLESS}
    plain = client.chat.completions.create(**how, max_tokens=20).choices[0].message.content
    stop = next(letter for letter in plain[3:] if letter not in plain[:3] and letter != "�")
    made = client.chat.completions.create(**how, max_tokens=20, stop=[stop, "zzz"]).choices[0]
    assert made.message.content == plain[: plain.index(stop)] and made.finish_reason == "stop"


def test_the_old_route_goes_on_with_texts_and_ids(server: Server) -> None:
    client = server.client()
    ids = server.post("/tokenize", {"text": "Hello world"}).json()["tokens"]
    assert server.post("/detokenize", {"tokens": ids}).json()["text"] == "Hello world"
    how: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 6, "extra_body": ENDLESS}
    made = client.completions.create(prompt=["Hello world", "you"], logprobs=1, **how)
    assert [choice.index for choice in made.choices] == [0, 1] and len(made.choices[0].logprobs.tokens) == 6
    by_ids = client.completions.create(prompt=ids, **how)
    assert by_ids.choices[0].text == made.choices[0].text != made.choices[1].text
    streamed = "".join(
        chunk.choices[0].text for chunk in client.completions.create(prompt=ids, stream=True, **how)
    )
    assert streamed == by_ids.choices[0].text


def test_an_answer_is_json_of_a_schema(server: Server) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "yes"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    made = server.client().chat.completions.create(
        model="tiny", messages=USER, max_tokens=60, seed=2, response_format=form
    )
    assert json.loads(made.choices[0].message.content)["a"] in ("x", "yes")
    assert made.choices[0].finish_reason == "stop"
    wrong = {"type": "json_schema", "json_schema": {"name": "it", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError, match="cannot be kept to"):
        server.client().chat.completions.create(model="tiny", messages=USER, response_format=wrong)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "messages"),
        ({"messages": []}, 400, "at least 1"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "half a character"),
        ({"messages": [{"role": "ghost", "content": "x"}]}, 400, "has the role 'ghost'"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, 400, "'mood' is not honoured"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "wanted a turn of the user"),
        ({"messages": USER, "temperature": -1}, 400, "temperature"),
        ({"messages": USER, "top_p": 5}, 400, "top_p"),
        ({"messages": USER, "store": True}, 400, "store: is not honoured"),
        ({"messages": USER, "model": "other"}, 404, "there are tiny"),
        ({"messages": USER, "max_tokens": 5000}, 400, "context"),
        ({"messages": [{"role": "user", "content": "Hello " * 500}]}, 400, "context"),
        ({"messages": [{"role": "user", "content": "Hello " * 9000}]}, 400, "54,000 characters"),
        ({"messages": USER, "n": 5}, 400, "at most 4 answers"),
        ({"messages": USER, "logit_bias": {"999": 1}}, 400, "no token 999"),
        ({"messages": USER, "top_logprobs": 2}, 400, "logprobs: true"),
        ({"messages": USER, "stream_options": {}}, 400, "stream: true"),
        ({"messages": USER, "tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "does not show the tools"),
        ({"messages": USER, "tool_choice": "required"}, 400, "tool_choice"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_in_words(
    server: Server, body: Any, status: int, said: str
) -> None:
    answer = httpx.post(
        server.url + "/v1/chat/completions",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert said.lower() in error["message"].lower()


def test_no_json_another_path_and_too_much_are_refused_in_the_same_form(server: Server) -> None:
    where = server.url + "/v1/chat/completions"
    json_type = {"Content-Type": "application/json"}
    for answer, status in (
        (httpx.post(where, content='{"messages": ', headers=json_type), 400),
        (httpx.post(where, content="[" * 100_000, headers=json_type), 400),
        (httpx.get(server.url + "/v1/nothing"), 404),
        (httpx.get(server.url + "/v1/models/nobody"), 404),
        (httpx.get(where), 405),
        (httpx.post(where, content=b" " * (5 << 20), headers=json_type), 413),
        (httpx.get(server.url + "/health", headers={"Host": "evil.example"}), 403),
    ):
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"]


def test_more_than_may_wait_are_told_to_come_again(server: Server) -> None:
    body = {"messages": USER, "max_tokens": 300, "n": 4, **ENDLESS}
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: server.post("/v1/chat/completions", body), range(12)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429} and statuses.count(200) >= 5
    refused = answers[statuses.index(429)]
    assert int(refused.headers["Retry-After"]) >= 1 and refused.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("stream", [True, False])
def test_the_work_ends_when_the_client_goes_away(server: Server, stream: bool) -> None:
    names = ("requests_total", "cancelled_total", "generated_tokens_total")
    taken, cancelled, written = (server.metric(name) for name in names)
    body = {"messages": USER, "max_tokens": 370, "n": 4, "stream": stream, **ENDLESS}
    text = json.dumps(body).encode()
    address = server.url.removeprefix("http://")
    host, port = address.split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    with contextlib.ExitStack() as lines:
        for _ in range(4):  # one is answered, the others wait
            line = lines.enter_context(socket.create_connection((host, int(port))))
            line.sendall(head.encode() + f"Content-Length: {len(text)}\r\n\r\n".encode() + text)
        server.wait("requests_total", taken + 4)
    server.wait("running", 0.0)
    server.wait("waiting", 0.0)
    assert server.metric("cancelled_total") >= cancelled + 2
    assert server.metric("generated_tokens_total") - written < 3 * 4 * 370


def test_colossalais_routes(server: Server) -> None:
    body = {
        "history": [{"instruction": "Hello", "response": "world"}, {"instruction": "you"}],
        "max_new_tokens": 9,
    }
    whole = server.post("/generate", {**body, "temperature": 0})
    assert whole.status_code == 200 and isinstance(whole.json(), str) and whole.json()
    events: list[tuple[str, str]] = []
    with httpx.stream("POST", server.url + "/generate/stream", json={**body, "temperature": 0}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for block in answer.read().decode().split("\n\n")[:-1]:
            lines = [line.partition(": ") for line in block.split("\n")]
            name = next(value for key, _, value in lines if key == "event")
            events.append((name, "\n".join(value for key, _, value in lines if key == "data")))
    assert events[-1] == ("end", "") and {name for name, _ in events[:-1]} == {"generate"}
    assert "".join(text for _, text in events[:-1]) == whole.json()
    answered = {"history": [{"instruction": "Hello", "response": "world"}]}
    assert "must be empty" in server.post("/generate", answered).json()["error"]["message"]


def test_a_word_of_the_list_is_not_said_whole_or_as_it_comes(server: Server) -> None:
    today = server.post("/tokenize", {"text": "today"}).json()["tokens"]
    bias = {str(today[0]): 100}
    assert len(today) == 1
    body = {"messages": USER, "max_tokens": 8, "temperature": 0, "logit_bias": bias, "seed": 1}
    whole = server.post("/v1/chat/completions", body).json()["choices"][0]
    # One word after the other is one word of letters; a space between them makes them two.
    space = server.post("/tokenize", {"text": " today"}).json()["tokens"]
    alone = server.post("/v1/chat/completions", {**body, "max_tokens": 1}).json()["choices"][0]
    assert whole["message"]["content"] == "today" * 8 and whole["finish_reason"] == "length"
    assert alone["message"]["content"] == "" and alone["finish_reason"] == "content_filter"
    spaced = {**body, "logit_bias": {str(space[-1]): 100}}
    streamed = httpx.post(
        server.url + "/v1/chat/completions", json={**spaced, "max_tokens": 1, "stream": True}
    ).text
    assert "today" not in streamed and "content_filter" in streamed


def test_keys_origins_scores_and_a_rate(folder: Path, reward_folder: Path) -> None:
    made = Server(
        f"tiny={folder}",
        f"judge={reward_folder}",
        "--api-key",
        "s3cret",
        "--cors",
        "https://page.example",
        "--rate",
        "9",
    )
    try:
        with pytest.raises(openai.AuthenticationError):
            made.client("wrong").models.list()
        client = made.client("s3cret")
        assert [model.id for model in client.models.list()] == ["tiny", "judge"]
        assert httpx.get(made.url + "/health").status_code == 200
        with pytest.raises(openai.NotFoundError, match="no model that writes 'judge'"):
            client.chat.completions.create(model="judge", messages=USER)
        key = {"Authorization": "Bearer s3cret"}
        scored = made.post("/score", {"messages": USER, "answers": ["Hello", "world"]}, headers=key).json()
        assert len(set(scored["scores"])) == 2
        assert scored["best"] == scored["scores"].index(max(scored["scores"]))
        ranked = client.chat.completions.create(
            messages=USER, model="tiny", n=3, seed=1, max_tokens=6, extra_body={"rank_by": "judge", **ENDLESS}
        )
        answers = [choice.message.content for choice in ranked.choices]
        again = made.post("/score", {"messages": USER, "answers": answers}, headers=key).json()["scores"]
        assert [choice.score for choice in ranked.choices] == pytest.approx(again)
        assert again == sorted(again, reverse=True) and len(set(again)) == 3
        asks = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
        allowed = httpx.options(made.url + "/v1/chat/completions", headers=asks)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        other = httpx.options(
            made.url + "/v1/chat/completions", headers={**asks, "Origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in other.headers
        for _ in range(20):
            last = made.post("/tokenize", {"text": "x"}, headers=key)
            if last.status_code != 200:
                break
        assert last.status_code == 429 and int(last.headers["Retry-After"]) >= 1
    finally:
        assert made.end() == 0, made.said


def test_who_was_let_in_is_answered_after_sigterm(folder: Path) -> None:
    made = Server(f"tiny={folder}", "--parallel", "2")
    body = {"messages": USER, "max_tokens": 300, **ENDLESS}
    with ThreadPoolExecutor(6) as pool:
        asked = [
            pool.submit(made.post, "/v1/chat/completions", {**body, "stream": at % 2 == 0}) for at in range(6)
        ]
        made.wait("requests_total", 6.0)
        assert made.end() == 0, made.said
        answers = [one.result() for one in asked]
    for at, answer in enumerate(answers):
        assert answer.status_code == 200
        assert answer.text.rstrip().endswith("[DONE]" if at % 2 == 0 else "}")


def test_wrong_words_are_one_message(folder: Path, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        command = [sys.executable, "-m", "espalier.cli", "serve", *words]
        done = processes.run(command, capture_output=True, timeout=60)
        assert done.returncode == 2, done.stderr
        return done.stderr

    (tmp_path / "words.json").write_text("{}", "utf-8")
    assert "two models are called" in said(f"a={folder}", f"a={folder}")
    assert "wanted a JSON list of words" in said(str(folder), "--profanity", str(tmp_path / "words.json"))
    assert "an empty key lets everybody in" in said(str(folder), "--api-key", " ")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot listen there" in said(str(folder), "--port", str(taken.getsockname()[1]))
