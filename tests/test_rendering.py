"""Chat templates write what they wrote without bounds, and one that would not end is refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

import espalier
from espalier.data.encode.templates import TokenizerTemplate
from espalier.data.records import Message
from espalier.errors import UserError
from espalier.models.load import CHATML, train_tokenizer
from espalier.rendering import bound_templates, rendered

PLAIN = chat_template_utils._compile_jinja_template.__wrapped__
"""As transformers compiles; taken before anything in this process asks for bounds, or the bounded one's own."""
TALK = [
    {"role": "system", "content": "be kind <&> \n  "},
    {"role": "user", "content": "2+3=?"},
    {
        "role": "assistant",
        "content": "5 {{ x }}",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
    },
    {"role": "user", "content": "再见"},
]
TEMPLATES = [
    CHATML,
    "{% macro turn(m, n=1) %}<{{ m.role }}{{ n }}>{{ m.content | trim }}{% endmacro %}"
    "{% for m in messages recursive %}{{ turn(m, loop.index) ~ '|' ~ loop.last ~ 3 }}\n{% endfor %}",
    "{%- set ns = namespace(n=0, text='') -%}{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.text = ns.text + m['content'][::-1] %}{% if loop.first %}first{% else %}{{- ' not ' -}}{% endif %}"
    "{% else %}none{% endfor %}{{ ns.n * 2 }} {{ 7 % 4 }} {{ 2 ** 5 }} {{ '%s=%d' % ('a', 3) }}{{ ns.text }}{{ '-' * 9 }}",
    "{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% for t in m.tool_calls %}"
    "{{ t.function.name }}({{ t.function.arguments | dictsort }}){% endfor %}{% continue %}{% endif %}"
    "{% generation %}{{ m.content.split('+') | join('/') | upper }}{% endgeneration %}{{ none }}{{ true }}{{ 1.5 }}"
    "{% endfor %}{{ missing }}{{ range(5) | list }}{{ messages | map(attribute='role') | join(', ') }}",
    "{% set x %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{ x | length }}{{ x | replace('5', '6') }}"
    "{% set a, b = 1, 'z' %}{{ a ~ b ~ messages[0].content }}{% macro f() %}[{{ caller(2) }}]{% endmacro %}"
    "{% call(n) f() %}{{ n }}{{ messages[0]['content'] }}{% endcall %}",
]
ENDLESS = {
    "loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{% for i in range(9) %}{% if n %}{{ f(n - 1) }}{% endif %}{% endfor %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for i in range(9000) recursive %}{% if loop.depth < 9 %}{{ loop(range(9000)) }}{% endif %}{% endfor %}",
    "30 MB": "{{ 'x' * 30000000 }}",
    "3 GB": "{{ 'x' * 3000000000 }}",
    "3 GB, unwritten": "{% set x = 3000000000 * 'x' %}",
    "a list": "{% set x = [1] * 3000000000 %}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "powers": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubled": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "joined": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "written into a variable": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}"
    "{% endset %}{% set ns.x = y %}{% endfor %}",
    "own text": "{% for i in range(99999) %}" + "long " * 400 + "{% endfor %}",
    "replaced": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x | replace('a', 'aaaa') %}{% endfor %}",
    "called": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', 'aaaa') %}{% endfor %}",
    "nested loops that count": "{% for i in range(9999) %}{{ range(99999) | list | length }}{% endfor %}"
    * 20,
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["some text"] * 3, 300)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_bounds_change_nothing_of_what_is_written(template: str, prompt: bool) -> None:
    bound_templates()
    given: dict[str, Any] = {
        "messages": TALK,
        "tools": None,
        "documents": None,
        "add_generation_prompt": prompt,
    }
    bounded = chat_template_utils._compile_jinja_template(template)
    assert type(bounded.environment).__name__ == "_Bounded"
    plain = PLAIN(template)
    assert bounded.render(**given) == plain.render(**given)
    assert "".join(bounded.generate(**given)) == plain.render(**given)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDLESS)
def test_what_does_not_end_is_refused_at_once(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = ENDLESS[name] + "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(
        UserError, match=r"does not come to an end: it (takes|makes|writes|computes).*template: simple"
    ):
        TokenizerTemplate(tokenizer).render([Message("user", "hi"), Message("assistant", "ho")])


def test_a_long_conversation_is_not_too_much(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = CHATML
    long = [Message("user", "x" * 1_000_000), Message("assistant", "y" * 1_000_000)] * 2
    assert sum(len(p.text) for p in TokenizerTemplate(tokenizer).render(long)) > 4_000_000
    many = [Message("user", "a"), Message("assistant", "b")] * 300
    text = TokenizerTemplate(tokenizer)._text(many, False, None)
    assert text.count("<|im_start|>") == 600


@pytest.mark.parametrize(
    "template", ["{{ 1 + 'a' }}", "{{ messages[7].content }}", "{{ 1 / 0 }}", "{{ ''.__class__.x }}"]
)
def test_a_template_with_a_mistake_is_one_message(template: str, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"chat template refuses a conversation of user"):
        TokenizerTemplate(tokenizer).render([Message("user", "hi")])


@pytest.mark.slow
@pytest.mark.parametrize("template", [*ENDLESS.values(), "{{ raise_exception('no system here') }}"])
def test_whoever_writes_a_conversation_meets_the_bounds(
    template: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """lm_eval's own way to a template, and the marks of an encoder-decoder, beside those of the data."""
    from espalier.models.tokenizers.marks import give_template

    tokenizer.chat_template = template + "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    for write in (
        lambda: rendered(tokenizer, turns, add_generation_prompt=True),
        lambda: give_template(tokenizer, {"decoder_start_token_id": 0}),
    ):
        with pytest.raises(UserError, match=r"chat template (does not come|refuses).*chat_template\.jinja"):
            write()


def test_only_one_place_asks_a_template() -> None:
    """So that none is rendered without bounds and a message."""
    sources = Path(espalier.__path__[0]).rglob("*.py")
    asking = [path.name for path in sources if ".apply_chat_template(" in path.read_text("utf-8")]
    assert asking == ["rendering.py"]
