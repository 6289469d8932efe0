"""From a request's body to what the engine is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from espalier.data.read.messages import Bad
from espalier.data.read.turns import as_messages
from espalier.data.records import USER, Message
from espalier.errors import UserError
from espalier.serve.grammar import json_grammar
from espalier.serve.http.bodies import ChatBody, CompletionBody, GenerateBody, ResponseFormat, SampledBody
from espalier.serve.http.errors import Refusal
from espalier.serve.model import ServedModel
from espalier.serve.requests import Request
from espalier.serve.settings import AnswerSettings

LONGEST_TOKEN = 64
"""Characters; no tokenizer's tokens have so many on average."""

_TURN_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "function_call"}
_SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "n",
)


@dataclass(frozen=True)
class ChatQuestion:
    """What a chat asks.

    Attributes:
        request: to the engine.
        in_thoughts: whether the answer begins inside its thoughts.
        tools: names of those that may be called.
    """

    request: Request
    in_thoughts: bool
    tools: frozenset[str] = frozenset()


def chat_question(model: ServedModel, body: ChatBody, most_tokens: int) -> ChatQuestion:
    """A conversation for the engine.

    Raises:
        Refusal: something in it cannot be honoured.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise Refusal(400, "top_logprobs: wanted together with logprobs: true.", param="top_logprobs")
    messages = conversation(body.messages)
    check_length(sum(len(message.text) for message in messages), model.context, "messages")
    tools = body.tools if body.tools and body.tool_choice != "none" else None
    names = _tool_names(tools or [])
    limit = body.max_completion_tokens or body.max_tokens
    if body.max_completion_tokens and body.max_tokens and body.max_completion_tokens != body.max_tokens:
        raise Refusal(
            400, "max_tokens and max_completion_tokens say different things. Keep one.", param="max_tokens"
        )
    try:
        asked = model.asked(messages, json.dumps(tools, ensure_ascii=False) if tools else None)
        grammar = _grammar(body.response_format)
    except UserError as error:
        raise Refusal(400, str(error), param="messages") from None
    if grammar and asked.in_thoughts:
        raise Refusal(
            400, "response_format: this model's answers begin with thoughts, which no schema describes.",
            param="response_format",
        )  # fmt: skip
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    request = _request(model, asked.ids, body, limit, most_tokens, logprobs=logprobs, grammar=grammar)
    return ChatQuestion(request, asked.in_thoughts, frozenset(names))


def completion_requests(model: ServedModel, body: CompletionBody, most_tokens: int) -> list[Request]:
    """One request for each prompt, which is continued as it stands.

    Raises:
        Refusal: something in it cannot be honoured.
    """
    if body.echo:
        raise Refusal(400, "echo: is not honoured by this server. Leave it out.", param="echo")
    given = body.prompt
    several: Sequence[Any] = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    if len(several) > 128:
        raise Refusal(400, f"prompt: {len(several)} at a time; wanted at most 128.", param="prompt")
    size = len(model.tokenizer)
    requests = []
    for prompt in several:
        if isinstance(prompt, str):
            check_text(prompt, "prompt")
            check_length(len(prompt), model.context, "prompt")
            ids = model.encode(prompt)
        else:
            ids = tuple(prompt)
            check_ids(ids, size, "prompt")
        # OpenAI's own default for this old route.
        requests.append(
            _request(model, ids, body, body.max_tokens or 16, most_tokens, logprobs=body.logprobs)
        )
    return requests


def generate_question(model: ServedModel, body: GenerateBody, most_tokens: int) -> ChatQuestion:
    """Rounds of ColossalAI's chat server; those that the context cannot hold leave, the oldest first.

    Raises:
        Refusal: the last round has an answer already.
    """
    if body.history[-1].response:
        raise Refusal(
            400, "history: the last response must be empty; it is what is asked for.", param="history"
        )
    turns = [
        {"role": role, "content": text}
        for one in body.history
        for role, text in (("user", one.instruction), ("assistant", one.response))
    ]
    messages = conversation(turns[:-1])
    check_length(len(messages[-1].content), model.context, "history")
    room = min(body.max_new_tokens, max(1, model.context // 2))
    asked = model.fitted(messages, room)
    if asked.cut:
        raise Refusal(400, f"history: the last instruction is {asked.cut} tokens too long.", param="history")
    made = SampledBody(
        top_k=body.top_k,
        top_p=body.top_p,
        temperature=body.temperature,
        repetition_penalty=body.repetition_penalty,
    )
    return ChatQuestion(_request(model, asked.ids, made, room, most_tokens), asked.in_thoughts)


def conversation(turns: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """OpenAI's messages, checked.

    Raises:
        Refusal: a turn is none, or has a key that is not honoured.
    """
    for number, turn in enumerate(turns, start=1):
        unknown = [key for key, value in turn.items() if key not in _TURN_KEYS and value is not None]
        if unknown:
            raise Refusal(
                400,
                f"messages, turn {number}: {unknown[0]!r} is not honoured here. Leave it out.",
                param="messages",
            )
    try:
        messages = as_messages(list(turns), "messages")
    except Bad as bad:
        raise Refusal(400, str(bad), param="messages") from None
    if not any(message.role == USER for message in messages):
        raise Refusal(400, "messages: nothing is asked; wanted a turn of the user.", param="messages")
    return messages


def check_length(size: int, context: int, param: str) -> None:
    """A text of `size` characters that cannot fit is not tokenised: a few million characters take a second and a gigabyte.

    Raises:
        Refusal: there are more characters than the context has tokens, by far.
    """
    if size > LONGEST_TOKEN * context:
        raise Refusal(
            400,
            f"{param}: {size:,} characters are more than the {context} tokens of this model's context. Shorten it.",
            param=param,
            code="context_length_exceeded",
        )


def check_text(text: str, param: str) -> None:
    """Half a character is no text.

    Raises:
        Refusal: there is one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refusal(
            400, f"{param}: has half a character (a lone surrogate) at place {error.start}.", param=param
        ) from None


def check_ids(ids: Sequence[int], size: int, param: str) -> None:
    """All are tokens of the vocabulary.

    Raises:
        Refusal: one is not.
    """
    unknown = [token for token in ids if not 0 <= token < size]
    if unknown:
        raise Refusal(
            400, f"{param}: there is no token {unknown[0]}; the vocabulary has {size}.", param=param
        )


def _request(
    model: ServedModel,
    ids: tuple[int, ...],
    body: SampledBody,
    limit: int | None,
    most_tokens: int,
    **further: Any,
) -> Request:
    left = model.context - len(ids)
    if left < (limit or 1):
        raise Refusal(
            400,
            f"the prompt has {len(ids)} tokens and the answer may have {limit or 1}: together more than the "
            f"{model.context} of this model's context. Shorten the prompt, or lower the answer's limit.",
            code="context_length_exceeded",
        )
    if limit is not None and limit > most_tokens:
        raise Refusal(
            400,
            f"max_tokens {limit}: this server writes answers of at most {most_tokens} tokens.",
            param="max_tokens",
        )
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    for text in stop:
        check_text(text, "stop")
    given = {name: value for name in _SAME if (value := getattr(body, name)) is not None}
    try:
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    except ValueError:
        raise Refusal(400, "logit_bias: wanted ids of tokens as keys.", param="logit_bias") from None
    check_ids(list(bias), len(model.tokenizer), "logit_bias")
    try:
        settings = AnswerSettings(
            max_new_tokens=min(limit or most_tokens, left),
            stop=tuple(stop),
            logit_bias=bias,
            **given,
            **further,
        )
        return model.request(ids, settings)
    except UserError as error:
        raise Refusal(400, str(error)) from None


def _tool_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    names = []
    for number, tool in enumerate(tools, start=1):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if tool.get("type") != "function" or not isinstance(name, str) or not name:
            raise Refusal(
                400,
                f"tools, number {number}: wanted {{type: function, function: {{name, parameters}}}}.",
                param="tools",
            )
        check_text(json.dumps(tool, ensure_ascii=False), "tools")
        names.append(name)
    return names


def _grammar(wanted: ResponseFormat | None) -> str:
    if wanted is None or wanted.type == "text":
        return ""
    if wanted.type == "json_object":
        return json_grammar()
    if wanted.json_schema is None:
        raise Refusal(400, "response_format: json_schema has no schema.", param="response_format")
    check_text(json.dumps(wanted.json_schema.schema_, ensure_ascii=False), "response_format")
    return json_grammar(wanted.json_schema.schema_)
