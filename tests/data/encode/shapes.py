"""Chat templates in the shapes of models in the field, each beside the same in plain Python: what it writes, what is learned.

A plain writer gives (text, learned) pieces of a conversation, or None where some of it would be lost and so must be
refused. `tests.data.encode.test_law` holds the two against each other, and Espalier against both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from espalier.data.records import Message

Pieces = list[tuple[str, bool]]


@dataclass(frozen=True)
class Shape:
    """A template, its plain twin, its special tokens (the first ends answers), and those that swallow space behind them."""

    template: str
    plain: Callable[[Sequence[Message], str | None], Pieces | None]
    specials: tuple[str, ...]
    swallowing: tuple[str, ...] = ()


def calls_of(message: Message) -> list[dict]:
    return [call["function"] for call in json.loads(message.calls or "[]")]


def parted(message: Message) -> tuple[str, str]:
    """Thoughts and text of an answer that may hold its thoughts between marks, as Qwen3's template parts them."""
    if message.thoughts or "</think>" not in message.content:
        return message.thoughts, message.content
    before, _, after = message.content.rpartition("</think>")
    return before.rstrip("\n").split("<think>")[-1].lstrip("\n"), after.lstrip("\n")


def lost_thoughts(message: Message) -> bool:
    """Whether thoughts would be learned, where there is no place for any; those of a turn that is only read may go."""
    return bool(message.thoughts) and message.trained


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def plain_chatml(messages: Sequence[Message], tools: str | None) -> Pieces | None:
    pieces: Pieces = []
    for message in messages:
        if lost_thoughts(message) or message.calls or tools:
            return None
        learned = message.role == "assistant" and message.trained
        pieces += [
            (f"<|im_start|>{message.role}\n", False),
            (f"{message.content}<|im_end|>", learned),
            ("\n", False),
        ]
    return pieces


# Thoughts only behind the last question; calls between marks; results of tools in a turn of the user.
QWEN3 = (
    "{%- if tools %}{{ '<|im_start|>system\n' ~ (messages[0].content ~ '\n\n' if messages[0].role == 'system' else '') }}"
    "Tools:{% for t in tools %}{{ '\n' ~ (t | tojson) }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\n' ~ messages[0].content ~ '<|im_end|>\n' }}{% endif %}"
    "{%- set at = namespace(asked=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set at.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{%- for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' ~ m.content ~ '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' ~ m.content ~ '\n</tool_response><|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}{% set text = m.content if m.content is string else '' %}{% set thoughts = '' %}"
    "{%- if m.reasoning_content is string %}{% set thoughts = m.reasoning_content %}"
    "{%- elif '</think>' in text %}"
    "{% set thoughts = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > at.asked and (loop.last or thoughts) %}"
    "{{- '<think>\n' ~ thoughts.strip('\n') ~ '\n</think>\n\n' ~ text.lstrip('\n') }}{% else %}{{ text }}{% endif %}"
    "{%- for call in m.tool_calls or [] %}{{ '\n' if text or not loop.first }}"
    '{{- \'<tool_call>\n{"name": "\' ~ call.function.name ~ \'", "arguments": \' }}'
    "{{- call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
    "{{- '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def plain_qwen3(messages: Sequence[Message], tools: str | None) -> Pieces | None:
    asked = max(at for at, message in enumerate(messages) if message.role == "user")
    system = messages[0].content if messages[0].role == "system" else None
    pieces: Pieces = []
    if tools:
        listed = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in json.loads(tools))
        opening = f"{system}\n\n" if system is not None else ""
        pieces = [(f"<|im_start|>system\n{opening}Tools:{listed}<|im_end|>\n", False)]
    elif system is not None:
        pieces = [(f"<|im_start|>system\n{system}<|im_end|>\n", False)]
    for at, message in enumerate(messages):
        if message.role == "user":
            pieces.append((f"<|im_start|>user\n{message.content}<|im_end|>\n", False))
        if message.role == "tool":
            pieces.append(
                (f"<|im_start|>user\n<tool_response>\n{message.content}\n</tool_response><|im_end|>\n", False)
            )
        if message.role == "assistant":
            thoughts, text = parted(message)
            shown = at > asked and (at == len(messages) - 1 or thoughts)
            if thoughts.strip() and not shown and message.trained:
                return None
            answer = (
                f"<think>\n{thoughts.strip(chr(10))}\n</think>\n\n{text.lstrip(chr(10))}" if shown else text
            )
            for number, call in enumerate(calls_of(message)):
                answer += "\n" if text or number else ""
                answer += f'<tool_call>\n{{"name": "{call["name"]}", "arguments": {json.dumps(call["arguments"], ensure_ascii=False)}}}\n</tool_call>'
            pieces += [
                ("<|im_start|>assistant\n", False),
                (f"{answer}<|im_end|>", message.trained),
                ("\n", False),
            ]
    return pieces


# Cuts the thoughts out of every answer, and begins a generation with <think>.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{%- elif m.role == 'user' %}{{ '<|User|>' ~ m.content }}"
    "{%- elif m.role == 'assistant' %}{{ '<|Assistant|>' ~ m.content.split('</think>')[-1] ~ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)


def plain_r1(messages: Sequence[Message], tools: str | None) -> Pieces | None:
    pieces: Pieces = [("<s>", False)]
    for at, message in enumerate(messages):
        if message.role == "tool" or message.calls or tools:
            return None
        if message.role != "assistant":
            pieces.append((("<|User|>" if message.role == "user" else "") + message.content, False))
            continue
        thinks = bool(message.thoughts.strip()) or message.content.lstrip().startswith("<think>")
        last = at == len(messages) - 1
        if (
            message.trained and thinks != last
        ):  # thoughts of earlier turns are lost, and a last turn must have some
            return None
        if message.trained and last:
            answer = f"{message.thoughts.strip(chr(10))}\n</think>\n\n{message.content}" if message.thoughts else (
                message.content.lstrip().removeprefix("<think>").removeprefix("\n")
            )  # fmt: skip
            pieces += [("<|Assistant|><think>\n", False), (f"{answer}</s>", True)]
        else:
            shown = message.content.split("</think>")[-1]
            pieces += [("<|Assistant|>", False), (f"{shown}</s>", message.trained)]
    return pieces


# Trims all turns; one call in a turn, which then shows nothing else; results of tools are ipython's.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' ~ (m.content | tojson) ~ '<|eot_id|>' }}"
    "{%- elif m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    "{% set call = m.tool_calls[0].function %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{{ '{\"name\": \"' ~ call.name ~ '\", \"parameters\": ' }}{{ call.arguments | tojson }}{{ '}<|eot_id|>' }}"
    "{%- else %}{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' }}"
    "{%- if tools and m.role == 'user' and loop.index0 < 2 %}{{ tools | tojson }}{{ '\n' }}{% endif %}"
    "{{- m.content | trim }}{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def plain_llama3(messages: Sequence[Message], tools: str | None) -> Pieces | None:
    pieces: Pieces = [("<s>", False)]
    for at, message in enumerate(messages):
        calls = calls_of(message)
        if (
            (message.thoughts.strip() and message.trained)
            or len(calls) > 1
            or (calls and message.content.strip())
        ):
            return None
        role = {"tool": "ipython"}.get(message.role, message.role)
        pieces.append((f"<|start_header_id|>{role}<|end_header_id|>\n\n", False))
        if tools and role == "user" and at < 2:
            pieces.append((json.dumps(json.loads(tools), ensure_ascii=False) + "\n", False))
        text = message.content.strip()
        if role == "ipython":
            text = json.dumps(message.content, ensure_ascii=False)
        if calls:
            text = f'{{"name": "{calls[0]["name"]}", "parameters": {json.dumps(calls[0]["arguments"], ensure_ascii=False)}}}'
        pieces.append((f"{text}<|eot_id|>", role == "assistant" and message.trained))
    return pieces


# No system turn, strict order, a space before an answer; eos ends it.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' ~ m.content ~ ' [/INST]' }}{% else %}{{ ' ' ~ m.content ~ eos_token }}{% endif %}"
    "{% endfor %}"
)


def plain_mistral(messages: Sequence[Message], tools: str | None) -> Pieces | None:
    pieces: Pieces = [("<s>", False)]
    for message in messages:
        if message.role not in ("user", "assistant") or lost_thoughts(message) or message.calls or tools:
            return None
        if message.role == "user":
            pieces.append((f"[INST] {message.content} [/INST]", False))
        else:
            pieces.append((f" {message.content}</s>", message.trained))
    return pieces


# Trims, calls the assistant model, knows no system turn.
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('no ' ~ m.role) }}"
    "{% endif %}{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' ~ (m.content | trim) ~ "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def plain_gemma(messages: Sequence[Message], tools: str | None) -> Pieces | None:
    pieces: Pieces = [("<s>", False)]
    for message in messages:
        if message.role not in ("user", "assistant") or lost_thoughts(message) or message.calls or tools:
            return None
        learned = message.role == "assistant"
        pieces.append((f"<start_of_turn>{'model' if learned else 'user'}\n", False))
        pieces += [(f"{message.content.strip()}<end_of_turn>", learned and message.trained), ("\n", False)]
    return pieces


# Its marks swallow the white space behind them, and eos closes the whole conversation.
PHI3 = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def plain_phi3(messages: Sequence[Message], tools: str | None) -> Pieces | None:
    pieces: Pieces = []
    for message in messages:
        if lost_thoughts(message) or message.calls or tools:
            return None
        learned = message.role == "assistant" and message.trained
        pieces += [(f"<|{message.role}|>\n", False), (f"{message.content}<|end|>", learned), ("\n", False)]
    return [*pieces, ("</s>", False)]


_IM = ("<|im_end|>", "<|im_start|>")
_PHI = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")
SHAPES = {
    "chatml": Shape(CHATML, plain_chatml, _IM),
    "qwen3": Shape(QWEN3, plain_qwen3, _IM),
    "r1": Shape(R1, plain_r1, ("</s>", "<|User|>", "<|Assistant|>")),
    "llama3": Shape(LLAMA3, plain_llama3, ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")),
    "mistral": Shape(MISTRAL, plain_mistral, ("</s>",)),
    "gemma": Shape(GEMMA, plain_gemma, ("<end_of_turn>", "<start_of_turn>")),
    "phi3": Shape(PHI3, plain_phi3, _PHI, _PHI),
}
