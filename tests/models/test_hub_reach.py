"""A hub id without a network: one message, within three seconds, that says what to set."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from espalier.errors import UserError
from espalier.models import hub_reach
from espalier.models.hub_reach import check_reachable


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    check_reachable.cache_clear()
    yield tmp_path / "hub"
    check_reachable.cache_clear()


def test_where_nobody_listens_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(
        UserError, match=rf"own/er: no such folder.*{endpoint} cannot be reached.*HF_ENDPOINT.*HF_HUB_OFFLINE"
    ) as told:
        check_reachable("own/er")
    assert "\n" not in str(told.value)


def test_who_never_answers_is_waited_for_three_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_reach, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(UserError, match="cannot be reached"):
            check_reachable("own/er")
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("code", [200, 404])
def test_whoever_answers_is_there(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        check_reachable("own/er")


def test_offline_only_what_was_fetched_is_there(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE=1 forbids"):
        check_reachable("own/er")
    check_reachable.cache_clear()
    (own_cache / "models--own--er" / "snapshots" / "0123").mkdir(parents=True)
    check_reachable("own/er")
    with pytest.raises(UserError, match="forbids"):
        check_reachable("own/er", "datasets")


def test_paths_are_never_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (str(tmp_path), "./none", "a/b/c", "~/x"):
        check_reachable(name)
