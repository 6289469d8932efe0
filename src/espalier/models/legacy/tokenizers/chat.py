"""How the old chat models write a conversation, as the chat templates of their tokenizers (Jinja).

GLM's and ChatGLM-6B's put the marks of prefix language models into the text: the blank, then the token that
begins the answer. The models read their masks and positions off these (`espalier.models.legacy.prefix`), so
training, sampling and exams need nothing else. Only the last answer of such a conversation can be trained: the
earlier ones are part of the prompt.
"""

from __future__ import annotations

PANGU = (
    "{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<eot>{% else %}<sep>{% endif %}{% endfor %}"
)
"""``问题<sep>回答<eot>``, below the tokenizer's own ``<s>``."""

_EARLIER = (
    "{% set answered = messages[-1]['role'] == 'assistant' %}"
    "{% set asked = messages[:-1] if answered else messages %}"
)

GLM = (
    _EARLIER + "{% set prompt = asked | map(attribute='content') | join('\n') %}"
    "[CLS]{{ prompt }}{% if not ('[MASK]' in prompt or '[sMASK]' in prompt or '[gMASK]' in prompt) %}[gMASK]"
    "{% endif %}<|endoftext|>{% if answered %}<|startofpiece|>{{ messages[-1]['content'] }}<|endofpiece|>"
    "{% elif add_generation_prompt %}<|startofpiece|>{% endif %}"
)
"""``[CLS]问题[gMASK]<|endoftext|><|startofpiece|>回答<|endofpiece|>``; a blank of the user's own is kept."""

CHATGLM = (
    _EARLIER + "{% set round = namespace(n=0) %}{% for m in asked %}"
    "{% if m['role'] == 'assistant' %}{{ m['content'] }}\n"
    "{% elif asked | length == 1 %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}[Round {{ round.n }}]\n问：{{ m['content'] }}\n答："
    "{% set round.n = round.n + 1 %}{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if answered %}[gMASK]<sop>{{ messages[-1]['content'] }}<eop>"
    "{% elif add_generation_prompt %}[gMASK]<sop>{% endif %}"
)
"""``问题[gMASK]<sop>回答<eop>``; with a history, rounds from 0 on."""

CHATGLM2 = (
    "[gMASK]<sop>{% set round = namespace(n=1) %}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '' if loop.first else '\n\n' }}"
    "[Round {{ round.n }}]\n\n问：{{ m['content'] }}\n\n答：{% set round.n = round.n + 1 %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
"""Rounds from 1 on, an empty line between all parts; the last answer ends with ``</s>``."""

CHATGLM3 = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n {{ m['content'] }}{% endfor %}"
    "{{ '<|assistant|>\n ' if add_generation_prompt else '' }}"
)

QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, with the system turn that the original puts first."""

INTERNLM = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<eoa>\n"
    "{% elif m['role'] == 'user' %}<|User|>:{{ m['content'] }}<eoh>\n<|Bot|>:"
    "{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
)

MOSS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<eom>\n"
    "{% elif m['role'] == 'user' %}<|Human|>: {{ m['content'] }}<eoh>\n<|MOSS|>: "
    "{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
)

AQUILA = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}</s>"
    "{% elif m['role'] == 'user' %}Human: {{ m['content'] }}###Assistant:"
    "{% else %}{{ m['content'] }}###{% endif %}{% endfor %}"
)


def baichuan(user: str, assistant: str) -> str:
    """Turns between two reserved tokens, which have other names in each generation; answers end with ``</s>``."""
    return (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}</s>"
        f"{{% elif m['role'] == 'user' %}}{user}{{{{ m['content'] }}}}{assistant}"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
