"""Calls of tools in what a model writes: `<tool_call>{…}</tool_call>`, or nothing but a call as JSON."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from typing import Any

from espalier.data.read.tool_calls import calls_in_text
from espalier.serve.text import overlap

OPENED, CLOSED = "<tool_call>", "</tool_call>"


class Calls:
    """The calls in one answer, told apart from its text as it comes.

    Args:
        names: of the tools that may be called; a call of another is text.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._begun = False  # whether there was any text that could not be a call

    def feed(self, text: str) -> str:
        """What is certainly text."""
        self._held += text
        if not self._begun:
            start = self._held.lstrip()[:1]
            if not start or start in "{[":
                return ""
            self._begun = True
        at = self._held.find(OPENED)
        if at < 0:
            at = len(self._held) - overlap(self._held, OPENED)
        shown, self._held = self._held[:at], self._held[at:]
        return shown

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, and the calls in OpenAI's form."""
        calls: list[dict[str, Any]] = []
        rest, held = "", self._held
        if held.lstrip().startswith(("{", "[")):
            found = self._known(held)
            return ("", found) if found else (held, [])
        while OPENED in held:
            before, _, after = held.partition(OPENED)
            inside, _, held = after.partition(CLOSED)
            found = self._known(inside)
            rest += before if found else f"{before}{OPENED}{inside}{CLOSED if _ else ''}"
            calls += found
        rest += held
        return (rest.strip() if calls else rest), calls

    def _known(self, text: str) -> list[dict[str, Any]]:
        found = calls_in_text(text.strip())
        calls = [call["function"] for call in json.loads(found)] if found else []
        if not all(call["name"] in self._names for call in calls):
            return []
        return [
            {
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {
                    "name": call["name"],
                    "arguments": json.dumps(call["arguments"], ensure_ascii=False),
                },
            }
            for call in calls
        ]
