"""From the engine's events to OpenAI's responses, whole or as they come."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from espalier.serve.drawing import Token
from espalier.serve.http.asking import ChatQuestion
from espalier.serve.http.errors import Refusal, as_json
from espalier.serve.http.listening import Listening, sse
from espalier.serve.http.tools import Calls
from espalier.serve.model import ServedModel
from espalier.serve.requests import Finished, TextPiece
from espalier.serve.text import Thoughts

REASONS = {"stop": "stop", "length": "length", "banned": "content_filter"}
_BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]
_LEAST = -9999.0
"""What OpenAI says for a logprob of minus infinity, which JSON has no number for."""


class ChatChoice:
    """One answer of a chat, as changes to a message: text, thoughts and calls of tools."""

    def __init__(self, question: ChatQuestion) -> None:
        self._thoughts = Thoughts(question.in_thoughts)
        self._calls = Calls(question.tools) if question.tools else None

    def feed(self, text: str) -> list[dict[str, Any]]:
        """One more piece of the answer."""
        return self._deltas(self._thoughts.feed(text))

    def end(self, reason: str) -> tuple[list[dict[str, Any]], str]:
        """What is left, and why the answer ended, in OpenAI's words."""
        deltas = self._deltas(self._thoughts.end())
        said = REASONS[reason]
        if self._calls is not None:
            rest, calls = self._calls.end()
            deltas += [{"content": rest}] if rest else []
            if calls:
                deltas.append({"tool_calls": [{"index": at, **call} for at, call in enumerate(calls)]})
                said = "tool_calls" if said == "stop" else said
        return deltas, said

    def _deltas(self, parts: Any) -> list[dict[str, Any]]:
        deltas = []
        for kind, more in parts:
            if kind == "thoughts":
                deltas.append({"reasoning_content": more})
            else:
                shown = more if self._calls is None else self._calls.feed(more)
                deltas += [{"content": shown}] if shown else []
        return deltas


class ResponseHead:
    """What is the same in all parts of one response, and what it has cost."""

    def __init__(self, kind: str, model: ServedModel, listening: Listening) -> None:
        short = "chatcmpl" if kind.startswith("chat") else "cmpl"
        self.head = {
            "id": f"{short}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": model.name,
        }
        self._listening = listening
        self.prompt = sum(len(request.ids) for request in listening.requests)
        self.completion = 0

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens of prompts and answers."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self._listening.reused},
        }


async def whole_chat(model: ServedModel, question: ChatQuestion, listening: Listening) -> dict[str, Any]:
    """A chat completion."""
    account = ResponseHead("chat.completion", model, listening)
    n = question.request.settings.n
    choices = [ChatChoice(question) for _ in range(n)]
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "refusal": None} for _ in range(n)
    ]
    told: list[list[Token]] = [[] for _ in range(n)]
    reasons = [""] * n
    async for at, event in listening.events():
        if isinstance(event, TextPiece):
            deltas = choices[at].feed(event.text)
            told[at] += event.tokens
        else:
            deltas, reasons[at] = choices[at].end(event.reason)
            account.completion += event.tokens
        for delta in deltas:
            _merge(messages[at], delta)
    for message in messages:
        if message["content"] is None and "tool_calls" not in message:
            message["content"] = ""
    asked = question.request.settings.logprobs is not None
    return {
        **account.head,
        "choices": [
            {
                "index": at,
                "message": messages[at],
                "logprobs": {"content": chat_logprobs(model, told[at]), "refusal": None} if asked else None,
                "finish_reason": reasons[at],
            }
            for at in range(n)
        ],
        "usage": account.usage,
    }


def _merge(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if key == "tool_calls":
            message[key] = [{k: v for k, v in call.items() if k != "index"} for call in value]
        else:
            message[key] = (message.get(key) or "") + value


async def streamed_chat(
    model: ServedModel, question: ChatQuestion, listening: Listening, usage: bool
) -> AsyncIterator[str]:
    """The same as server-sent events."""
    account = ResponseHead("chat.completion.chunk", model, listening)
    n = question.request.settings.n
    asked = question.request.settings.logprobs is not None
    choices = [ChatChoice(question) for _ in range(n)]
    # The usage stands in a chunk of its own at the end, and is null in the others.
    tail = {"usage": None} if usage else {}

    def chunk(at: int, delta: dict[str, Any], reason: str | None = None, tokens: Sequence[Token] = ()) -> str:
        logprobs = {"content": chat_logprobs(model, tokens), "refusal": None} if asked and tokens else None
        choice = {"index": at, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return sse(as_json({**account.head, "choices": [choice], **tail}))

    for at in range(n):
        yield chunk(at, {"role": "assistant", "content": ""})
    try:
        async for at, event in listening.events():
            if isinstance(event, TextPiece):
                deltas = choices[at].feed(event.text) or ([{}] if asked and event.tokens else [])
                for number, delta in enumerate(deltas):
                    yield chunk(at, delta, tokens=() if number else event.tokens)
                continue
            deltas, reason = choices[at].end(event.reason)
            account.completion += event.tokens
            for delta in deltas:
                yield chunk(at, delta)
            yield chunk(at, {}, reason)
    except Refusal as refusal:
        yield sse(as_json(refusal.body))
        return
    if usage:
        yield sse(as_json({**account.head, "choices": [], "usage": account.usage}))
    yield sse("[DONE]")


async def whole_completion(model: ServedModel, listening: Listening) -> dict[str, Any]:
    """Texts that go on."""
    account = ResponseHead("text_completion", model, listening)
    count = sum(request.settings.n for request in listening.requests)
    texts, reasons = [""] * count, [""] * count
    told: list[list[Token]] = [[] for _ in range(count)]
    async for at, event in listening.events():
        if isinstance(event, Finished):
            reasons[at] = REASONS[event.reason]
            account.completion += event.tokens
        else:
            texts[at] += event.text
            told[at] += event.tokens
    asked = listening.requests[0].settings.logprobs is not None
    return {
        **account.head,
        "choices": [
            {
                "index": at,
                "text": texts[at],
                "logprobs": text_logprobs(model, told[at], 0) if asked else None,
                "finish_reason": reasons[at],
            }
            for at in range(count)
        ],
        "usage": account.usage,
    }


async def streamed_completion(model: ServedModel, listening: Listening, usage: bool) -> AsyncIterator[str]:
    """The same as server-sent events."""
    account = ResponseHead("text_completion", model, listening)
    asked = listening.requests[0].settings.logprobs is not None
    tail = {"usage": None} if usage else {}
    lengths = [0] * sum(request.settings.n for request in listening.requests)
    try:
        async for at, event in listening.events():
            if isinstance(event, TextPiece):
                logprobs = text_logprobs(model, event.tokens, lengths[at]) if asked else None
                choice = {"index": at, "text": event.text, "logprobs": logprobs, "finish_reason": None}
                lengths[at] += len(event.text)
            else:
                account.completion += event.tokens
                choice = {"index": at, "text": "", "logprobs": None, "finish_reason": REASONS[event.reason]}
            yield sse(as_json({**account.head, "choices": [choice], **tail}))
    except Refusal as refusal:
        yield sse(as_json(refusal.body))
        return
    if usage:
        yield sse(as_json({**account.head, "choices": [], "usage": account.usage}))
    yield sse("[DONE]")


def chat_logprobs(model: ServedModel, tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Tokens with their logprobs and bytes."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        text, raw = token_text(model, token)
        return {"token": text, "logprob": max(logprob, _LEAST), "bytes": raw}

    return [
        {**one(token.id, token.logprob), "top_logprobs": [one(*other) for other in token.alternatives]}
        for token in tokens
    ]


def text_logprobs(model: ServedModel, tokens: Sequence[Token], start: int) -> dict[str, Any]:
    """The same in the form of the old route; `start`: characters of the answer before them."""
    texts = [token_text(model, token.id)[0] for token in tokens]
    offsets = [start + sum(map(len, texts[:at])) for at in range(len(texts))]
    return {
        "tokens": texts,
        "token_logprobs": [max(token.logprob, _LEAST) for token in tokens],
        "top_logprobs": [
            {token_text(model, other)[0]: max(logprob, _LEAST) for other, logprob in token.alternatives}
            for token in tokens
        ],
        "text_offset": offsets,
    }


def token_text(model: ServedModel, token: int) -> tuple[str, list[int] | None]:
    """A token as text and as bytes; None where it is a part of a character and its bytes are not known."""
    text = str(model.tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if "\ufffd" not in text:
        return text, list(text.encode("utf-8", "replace"))
    raw = str(model.tokenizer.convert_ids_to_tokens(token))
    if raw.startswith("<0x") and raw.endswith(">") and len(raw) == 6:
        return text, [int(raw[3:5], 16)]
    if all(letter in _BYTES for letter in raw):
        return text, [_BYTES[letter] for letter in raw]
    return text, None
