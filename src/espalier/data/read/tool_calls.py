"""Calls of tools, as files have them -> one form: the JSON text of OpenAI's list, its arguments as objects.

Chat templates write arguments as JSON themselves, so that text of JSON would be written as JSON once more.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from espalier.data.read.messages import Bad, as_text, shown

_PYTHON = re.compile(r"([^\s`]+)[ \t]*\n\s*```python\n(tool_call\(.*\))\n```", re.DOTALL)
"""ChatGLM3: the tool's name on the line of the role, then the call as Python."""


def as_calls(value: Any, what: str) -> str:
    """OpenAI's ``tool_calls`` or ``function_call``, or a bare {name, arguments}, or a list of these.

    >>> as_calls({"name": "add", "arguments": '{"a": 2}'}, "turn 2")
    '[{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]'

    Raises `Bad` for a call without a name, and for arguments that are no object.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise Bad("broken tool call", f"{what}: the calls of tools are broken JSON: {error}") from None
    calls = [_call(call, what) for call in (value if isinstance(value, list) else [value])]
    return json.dumps(calls, ensure_ascii=False)


def _call(call: Any, what: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise Bad("broken tool call", f"{what} has a tool call without a function name: {shown(call)}")
    arguments = function.get("arguments")
    arguments = function.get("parameters") if arguments is None else arguments
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise Bad(
                "broken tool call", f"{what}: the arguments of a tool call are broken JSON: {error}"
            ) from None
    arguments = arguments or {}
    if not isinstance(arguments, Mapping):
        raise Bad(
            "broken tool call",
            f"{what}: the arguments of a tool call are {shown(arguments)}; wanted an object",
        )
    known: dict[str, Any] = {
        "type": "function",
        "function": {"name": function["name"], "arguments": dict(arguments)},
    }
    number = as_text(call.get("id"), f"{what}, id of a tool call", may_be_empty=True)
    text = json.dumps(known, ensure_ascii=False)
    as_text(text, f"{what}, a tool call")  # no half characters
    return {"id": number, **known} if number else known


def calls_in_text(text: str) -> str:
    """The calls that a text is, as `as_calls` has them; "" where it is something else, which is then just a text."""
    try:
        return as_calls(json.loads(text), "")
    except (json.JSONDecodeError, Bad):
        return ""


def python_call(text: str) -> str:
    """The call that a text is in ChatGLM3's form, as `as_calls` has it; "" where it is something else.

    >>> python_call("add\\n ```python\\ntool_call(a=2, b='x')\\n```")
    '[{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "x"}}}]'
    """
    match = _PYTHON.fullmatch(text.strip())
    try:
        parsed = ast.parse(match[2], mode="eval").body if match else None
        if match is None or not isinstance(parsed, ast.Call) or parsed.args:
            return ""
        arguments = {str(one.arg): ast.literal_eval(one.value) for one in parsed.keywords if one.arg}
        return (
            as_calls({"name": match[1], "arguments": arguments}, "")
            if len(arguments) == len(parsed.keywords)
            else ""
        )
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError, Bad):
        return ""
