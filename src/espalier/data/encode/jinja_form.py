"""Named templates as Jinja: what is saved with a tokenizer, so that other programs write conversations as in training.

The Jinja begins with a comment that names the template. Espalier goes by that name and not by the text behind it, so
that a later stage, a chat or an exam renders by the same code as the training did.
"""

from __future__ import annotations

import json
from typing import Any

from espalier.data.encode.encoding import adds_bos
from espalier.data.encode.named_templates import NAME, SLOT, Form, NamedTemplate, forms
from espalier.data.encode.templates import SimpleTemplate, Template

_VALUES = {"content": "message['content'] or ''", "system": "ns.system", "n": "ns.asked"}

_CALLS = """\
{%- macro calls_of(message) -%}
{%- set its = namespace(calls=[]) -%}
{%- for call in message['tool_calls'] or [] -%}
{%- set its.calls = its.calls + [{'name': call['function']['name'], 'arguments': call['function']['arguments']}] -%}
{%- endfor -%}
{%- if its.calls -%}
{{- '\\n' if message['content'] else '' -}}
{{- (its.calls[0] if its.calls | length == 1 else its.calls) | tojson -}}
{%- endif -%}
{%- endmacro -%}
"""


def as_jinja(template: Template, tokenizer: Any) -> str | None:
    """A chat template for transformers that writes what the template writes; None of one that is Jinja already.

    What transformers encodes of it gets no bos token, so it writes that itself where the tokenizer puts one before a text.
    """
    if isinstance(template, NamedTemplate):
        name = next(name for name, form in forms().items() if form == template.form)
        body = _of_form(template.form, template.end_of_turn)
    elif isinstance(template, SimpleTemplate):
        name, body = "simple", _simple(template.end_of_turn)
    else:
        return None
    if adds_bos(tokenizer):  # but where the conversation begins with one already
        bos = _text(tokenizer.bos_token)
        body = (
            f"{{%- set conversation -%}}\n{body}{{%- endset -%}}\n"
            f"{{{{- '' if conversation.startswith({bos}) else {bos} -}}}}\n{{{{- conversation -}}}}\n"
        )
    return f"{NAME % name}\n{_CALLS}{body}"


def _of_form(form: Form, end: str) -> str:
    separator, assistant = _text(form.separator), _text(form.assistant)
    system_form = form.system_form if form.system_form is not None else "{content}" + form.separator
    thoughts = ""
    if form.thoughts is not None:
        written = _filled(form.thoughts, content="message['reasoning_content']")
        thoughts = f"{{{{- ({written}) if message['reasoning_content'] else '' -}}}}\n"
    user = _filled(form.user)
    if form.first_user is not None:
        user = f"({_filled(form.first_user)}) if ns.asked == 1 and ns.system else ({user})"
    tool = _filled(form.user if form.tool is None else form.tool)
    opening = f"{{{{- ({_filled(system_form, content='ns.system')}) if ns.system else '' -}}}}\n"
    return f"""\
{{%- set ns = namespace(system={_text(form.system)}, asked=0, answered=false) -%}}
{{%- if messages and messages[0]['role'] == 'system' -%}}{{%- set ns.system = messages[0]['content'] -%}}{{%- endif -%}}
{{%- if tools -%}}
{{%- set ns.system = ns.system ~ ('\\n' if ns.system else '') ~ 'Tools:\\n' ~ (tools | tojson) -%}}
{{%- endif -%}}
{opening if form.first_user is None else ""}{{%- for message in messages -%}}
{{%- if message['role'] == 'assistant' -%}}
{{{{- ({separator} if ns.answered else '') ~ {assistant} -}}}}
{thoughts}{{{{- message['content'] or '' -}}}}{{{{- calls_of(message) -}}}}{{{{- {_text(end)} -}}}}
{{%- set ns.answered = true -%}}
{{%- elif message['role'] != 'system' -%}}
{{%- if message['role'] == 'user' -%}}{{%- set ns.asked = ns.asked + 1 -%}}{{%- endif -%}}
{{{{- {separator} if ns.answered else '' -}}}}
{{%- if message['role'] == 'tool' -%}}{{{{- {tool} -}}}}{{%- else -%}}{{{{- {user} -}}}}{{%- endif -%}}
{{%- set ns.answered = false -%}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- ({separator} if ns.answered else '') ~ {assistant} -}}}}{{%- endif -%}}
"""


def _simple(end: str) -> str:
    return f"""\
{{%- set speakers = {{'system': 'System:\\n', 'user': 'User:\\n', 'assistant': 'Assistant:\\n', 'tool': 'Tool:\\n'}} -%}}
{{{{- ('Tools:\\n' ~ (tools | tojson) ~ '\\n') if tools else '' -}}}}
{{%- for message in messages -%}}
{{{{- speakers[message['role']] -}}}}
{{%- if message['role'] == 'assistant' -%}}
{{{{- ('<think>\\n' ~ message['reasoning_content'] ~ '\\n</think>\\n\\n') if message['reasoning_content'] else '' -}}}}
{{{{- message['content'] or '' -}}}}{{{{- calls_of(message) -}}}}{{{{- {_text(end)} ~ '\\n' -}}}}
{{%- else -%}}
{{{{- (message['content'] or '') ~ '\\n' -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{{{- speakers['assistant'] if add_generation_prompt else '' -}}}}
"""


def _filled(form: str, **values: str) -> str:
    """A form as an expression of Jinja: its texts and the values of its slots, joined."""
    known = _VALUES | values
    parts = [
        f"({known[part]})" if place % 2 else _text(part)
        for place, part in enumerate(SLOT.split(form))
        if part
    ]
    return " ~ ".join(parts) or "''"


def _text(text: str) -> str:
    """A text as a literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)
