"""Which of two answers is better, by a language model behind an OpenAI-compatible endpoint.

A judge likes what it reads first, so it is asked twice, the second time with the answers exchanged (Zheng et al. 2023,
"Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", section 3.4).
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from espalier.errors import UserError

ASKED = """\
Two assistants have answered the same question. Say which answer serves the person who asked better: right, helpful, \
complete and clear. Neither the order of the answers nor their length counts in itself.

[Question]
{question}

[Answer A]
{first}

[Answer B]
{second}

Give your reasons in a few sentences. Then end with a line of its own: [[A]] if answer A is better, [[B]] if answer B \
is better, [[C]] if neither is."""

_VERDICT = re.compile(r"\[\[([ABC])\]\]")
_WORTH = {"A": 0.0, "B": 1.0, "C": 0.5}


@dataclass(frozen=True)
class Endpoint:
    """A model that is asked over HTTP, by the form of OpenAI's chat completions.

    Attributes:
        url: of the API, such as ``http://localhost:8000/v1``.
        model: its name there.
        key: sent as a bearer token, and shown nowhere; "" sends none.
        seconds: for one answer.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    seconds: float = 120.0

    def answer(self, message: str) -> str:
        """The likeliest answer to one message.

        Raises:
            UserError: the endpoint cannot be reached, refuses, or answers in another form.
        """
        if not self.url.startswith(("http://", "https://")):
            raise UserError(
                f"--url {self.url}: wanted http://… or https://…, such as http://localhost:8000/v1."
            )
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
            raise UserError(f"{self.url}: the judge answers {error.code} ({body}); check --url, --model and the key.") from None  # fmt: skip
        except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
            raise UserError(
                f"{self.url}: wanted a chat completion, found something else ({error!r}); check --url."
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.url}: the judge cannot be asked ({error}); check --url, and that it runs."
            ) from error
        return str(text)


def verdict(text: str) -> float | None:
    """What a judge's last verdict is worth for answer B: 1 better, 0.5 neither, 0 worse; None without a verdict.

    >>> verdict("A is [[A]]? No. [[B]]"), verdict("[[C]]"), verdict("B")
    (1.0, 0.5, None)
    """
    found = _VERDICT.findall(text)
    return _WORTH[found[-1]] if found else None


def preference(judge: Endpoint, question: str, a: str, b: str) -> tuple[float | None, float | None]:
    """What b is worth against a: as answer B, and as answer A; None where the judge gave no verdict."""
    last = verdict(judge.answer(ASKED.format(question=question, first=a, second=b)))
    first = verdict(judge.answer(ASKED.format(question=question, first=b, second=a)))
    return last, None if first is None else 1 - first
