"""A language model that is asked over HTTP, by the form of OpenAI's chat completions."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from espalier.engine.signals import stop_asked
from espalier.errors import Stopped, UserError

LONGEST_WAIT = 30.0
"""Seconds between two tries, at most."""

_AGAIN = (408, 409, 425, 429)
"""Answers of a server (beside 5xx) after which the same question may be answered later."""


class NoAnswer(UserError):
    """A question that was not answered; `passing`: whether it may be a little later."""

    def __init__(self, text: str, *, passing: bool) -> None:
        super().__init__(text)
        self.passing = passing


@dataclass(frozen=True)
class Endpoint:
    """Where the model is, and how long it may take.

    Attributes:
        url: of the API, such as ``http://localhost:8000/v1``.
        model: its name there.
        key: sent as a bearer token, and shown nowhere; "" sends none.
        seconds: for one answer.
        called: how the user has given url and model, for messages.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    seconds: float = 120.0
    called: tuple[str, str] = ("--url", "--model")

    def answer(self, message: str) -> str:
        """The likeliest answer to one message.

        Raises:
            NoAnswer: the endpoint cannot be reached, refuses, or answers in another form.
        """
        url, model = self.called
        if (wrong := unfit_url(self.url)) is not None:
            raise NoAnswer(f"{url} {wrong}", passing=False)
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": message}],
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            request = urllib.request.Request(
                self.url.rstrip("/") + "/chat/completions", json.dumps(asked).encode(), headers
            )
            with urllib.request.urlopen(request, timeout=self.seconds) as reply:
                said: Any = json.load(reply)
            text = said["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            body = error.read(200).decode("utf-8", "replace")
            raise NoAnswer(
                f"{self.url}: the judge answers {error.code} ({body}); check {url}, {model} and the key.",
                passing=error.code in _AGAIN or error.code >= 500,
            ) from None
        except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
            raise NoAnswer(
                f"{self.url}: wanted a chat completion, found something else ({error!r}); check {url}.",
                passing=False,
            ) from error
        except (OSError, ValueError) as error:
            raise NoAnswer(
                f"{self.url}: the judge cannot be asked ({error}); check {url}, and that it runs.",
                passing=isinstance(error, OSError),
            ) from error
        return str(text)

    def answer_patiently(
        self, message: str, retries: int, wait: float, told: Callable[[str], None] = lambda text: None
    ) -> str:
        """`answer`, asked again where it may be answered later.

        Args:
            retries: after the first try.
            wait: seconds before the second try; each later wait is twice as long, and at most `LONGEST_WAIT`.
            told: what went wrong, and when it is tried again.

        Raises:
            NoAnswer: of the last try, or one that another try would not change.
            Stopped: a signal came while it was waited.
        """
        for number in range(retries):
            try:
                return self.answer(message)
            except NoAnswer as error:
                if not error.passing:
                    raise
                pause = min(wait * 2**number, LONGEST_WAIT)
                told(f"{error} Asked again in {pause:g} s ({number + 1} of {retries}).")
                _sleep(pause)
        return self.answer(message)


def unfit_url(url: str) -> str | None:
    """What is wrong with the address of an API; None: nothing that can be seen."""
    if url.startswith(("http://", "https://")):
        return None
    return f"{url}: wanted http://… or https://…, such as http://localhost:8000/v1."


def _sleep(seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stop_asked():
            raise Stopped("stopped while a judge was waited for; run the same command again")
        time.sleep(min(left, 0.1))
