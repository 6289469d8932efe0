"""Chat templates come with models and are programs: they are given bounds on their steps and on what they write.

Transformers renders them in jinja's sandbox, which keeps them from files and code but not from a loop without end
or a string that fills the memory. `bound_templates` puts counting into what is compiled: one more statement for each
loop, macro and stretch of output, and a look at the length of each product, sum, filter and call. What a template
does is otherwise the same. The bounds are counts, not seconds, so a slow machine refuses nothing that a fast one
takes.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from espalier.errors import UserError

MISTAKES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What a template's own code may run into; a sum of a text and a number, for one."""

STEPS = 100_000
"""Rounds of loops and calls of macros in one rendering, beside four for each pair of turns; most take some a turn."""
CHARACTERS = 1 << 18
"""What one rendering may write beside eight times the text that it was given."""


class TooMuch(jinja2.TemplateError):
    """A chat template goes on for longer, or writes more, than any conversation needs."""


def rendered(
    tokenizer: Any,
    turns: Sequence[dict[str, Any]],
    remedy: str = "replace its chat_template.jinja",
    **settings: Any,
) -> str:
    """A conversation as text in the tokenizer's own chat template, within the bounds.

    Args:
        turns: ``role`` and ``content`` of each.
        remedy: the end of a message to the user, of a template that is at fault.
        settings: more for `apply_chat_template`.

    Raises:
        UserError: the template does not come to an end, refuses these turns, or has a mistake.
    """
    bound_templates()
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **settings))
    except TooMuch as error:
        raise UserError(f"the tokenizer's chat template does not come to an end: {error}; {remedy}") from None
    except (jinja2.TemplateError, *MISTAKES) as error:
        roles = ", ".join(str(turn.get("role")) for turn in turns)
        raise UserError(
            f"the tokenizer's chat template refuses a conversation of {roles}: {error}; {remedy}"
        ) from None


@functools.cache
def bound_templates() -> None:
    """From now on every chat template of this process that transformers compiles has bounds."""
    from transformers.utils import chat_template_utils

    plain: Callable[[str], jinja2.Template] = chat_template_utils._compile_jinja_template.__wrapped__

    @functools.lru_cache
    def bounded(chat_template: str) -> jinja2.Template:
        environment = plain("").environment  # with the filters and functions that templates expect
        environment.__class__ = _Bounded
        environment.template_class = _Template
        environment.filters = {name: _checked(f) for name, f in environment.filters.items()}
        environment.optimized = False  # what is computed while it is compiled would not be counted
        environment.finalize = environment.finalize_counted  # type: ignore[attr-defined]
        return environment.from_string(chat_template)

    chat_template_utils._compile_jinja_template = bounded


class _Count(threading.local):
    """Of the rendering that goes on in this thread."""

    steps = 0
    most_steps = STEPS
    written = 0
    most = CHARACTERS


_count = _Count()


def _begin(given: Any, turns: int) -> None:
    _count.steps = _count.written = 0
    _count.most = CHARACTERS + 8 * _length(given)
    _count.most_steps = STEPS + 4 * turns * turns


def _step(n: int = 1) -> None:
    _count.steps += n
    if _count.steps > _count.most_steps:
        raise TooMuch(f"it takes more than {_count.most_steps:,} steps for this conversation")


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_length(part) for pair in value.items() for part in pair)
    return sum(map(_length, value)) if isinstance(value, list | tuple) else 0


def _written(n: int) -> None:
    _count.written += n
    if _count.written > _count.most:
        raise TooMuch(f"it writes more than {_count.most:,} characters for this conversation")


def _fits(value: Any) -> Any:
    """The value, if it is no text or list that is longer than all that may be written."""
    if isinstance(value, str | list | tuple):
        _fits_length(len(value))
        _step(len(value) >> 8)  # what makes long ones over and over takes time too
    return value


def _fits_length(n: int) -> None:
    if n > _count.most:
        raise TooMuch(f"it makes a text or list longer than {_count.most:,} for this conversation")


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # with jinja's marks on it, of what is to be passed
    def checked(*args: Any, **settings: Any) -> Any:
        return _fits(function(*args, **settings))

    return checked


class _Template(jinja2.Template):
    def new_context(self, vars: Any = None, shared: bool = False, locals: Any = None) -> Any:
        if vars is not None and not shared:
            given = [vars.get(name) for name in ("messages", "tools", "documents")]
            _begin(given, len(given[0] or []))
        return super().new_context(vars, shared, locals)


class _Bounded(ImmutableSandboxedEnvironment):
    """The sandbox of transformers' templates, counting."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    _fits_length(len(value) * times)
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > 1 << 14:
                raise TooMuch("it computes a number of thousands of digits")
        return _fits(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *args: Any, **settings: Any) -> Any:
        return _fits(super().call(context, function, *args, **settings))

    def step(self) -> str:
        """One round of a loop, or one call of a macro."""
        _step()
        return ""

    def wrote(self, n: int) -> str:
        """So many characters of the template's own text."""
        _written(n)
        return ""

    def finalize_counted(self, value: Any) -> Any:
        """What an expression writes, counted."""
        _written(len(value) if isinstance(value, str) else 8)
        return value

    def _generate(self, source: nodes.Template, *args: Any, **settings: Any) -> str:
        return super()._generate(_Counting().visit(source), *args, **settings)


class _Counting(NodeTransformer):
    """The statements that count, put into a template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._stepping(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._stepping(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._stepping(node)

    def _stepping(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, _call("step", node.lineno))
        stepping: nodes.Node = node
        return stepping

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:
        self.generic_visit(node)
        own = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        return [_call("wrote", node.lineno, own), node] if own else [node]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "join", [], [], None, None, lineno=node.lineno)


def _call(name: str, line: int, *numbers: int) -> nodes.Node:
    given = [nodes.Const(n, lineno=line) for n in numbers]
    function = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.ExprStmt(nodes.Call(function, given, [], None, None, lineno=line), lineno=line)
