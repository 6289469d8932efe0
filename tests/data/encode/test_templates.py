"""Templates against the tokenizer's own, over chat templates of every manner met in the field."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import ByT5Tokenizer

from espalier.data.encode.templates import (
    Piece,
    SimpleTemplate,
    TokenizerTemplate,
    choose_template,
    prompt_text,
)
from espalier.data.records import Message
from espalier.errors import UserError
from tests.data.listed import load_records

SYSTEM = Message("system", "你很简短。")
TURNS = [
    Message("user", "2+3=?"),
    Message("assistant", "5"),
    Message("user", "再说一遍\n"),
    Message("assistant", "5。\n\nDone"),
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} </s>{% else %}{{ raise_exception('no ' + m.role) }}"
    "{% endif %}{% endfor %}"
)
# No end mark of its own: the next turn's special token ends the turn before.
GLM = (
    "[gMASK]{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Qwen3's manner: only the last turn shows an (empty) think block.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETS_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HIDES_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ONE_ANSWER_ONLY = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}Now think, then answer:{% endif %}"
PLAIN = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}### assistant:\n{% endif %}"


def tokenizer(template: str | None, specials: tuple[str, ...] = ()) -> ByT5Tokenizer:
    """A tokenizer that needs no files; templates work on text, so any will do."""
    made = ByT5Tokenizer(extra_ids=0, additional_special_tokens=list(specials) or None)
    made.chat_template = template
    return made


def trained(pieces: list[Piece]) -> list[str]:
    return [piece.text for piece in pieces if piece.trained]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def own(tok: ByT5Tokenizer, messages: list[Message], **options: bool) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return tok.apply_chat_template(turns, tokenize=False, **options)


@pytest.mark.parametrize("opening", [[], [SYSTEM]])
def test_chatml_trains_every_answer_with_its_end_and_nothing_else(opening: list[Message]) -> None:
    tok = tokenizer(CHATML)
    template = TokenizerTemplate(tok)
    pieces = template.render([*opening, *TURNS])
    assert text(pieces) == own(tok, [*opening, *TURNS])
    assert trained(pieces) == ["5<|im_end|>", "5。\n\nDone<|im_end|>"]
    assert pieces[-1] == Piece("\n", False)
    assert template.end_of_turn == "<|im_end|>"
    assert prompt_text(template, TURNS[:3]) == own(tok, TURNS[:3], add_generation_prompt=True)


@pytest.mark.parametrize("answer", [">", "e", "|", "<|im_end|", "assistant", "user", "y", "\n5\n"])
def test_an_answer_that_looks_like_the_template_is_still_found(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [TURNS[0], Message("assistant", answer), TURNS[2], Message("assistant", answer)]
    assert trained(TokenizerTemplate(tokenizer(CHATML)).render(turns)) == [answer + "<|im_end|>"] * 2
    # with the shortcut for the usual end mark switched off, differencing must find the same
    monkeypatch.setattr(TokenizerTemplate, "_verbatim", lambda *given: None)
    assert trained(TokenizerTemplate(tokenizer(CHATML)).render(turns)) == [answer + "<|im_end|>"] * 2


def test_the_prompt_is_what_stands_before_the_trained_text() -> None:
    for template in (TokenizerTemplate(tokenizer(CHATML)), SimpleTemplate("</s>")):
        pieces = template.render(TURNS, train_from=3)
        assert len(trained(pieces)) == 1
        assert pieces[0].text == prompt_text(template, TURNS[:3])


def test_an_end_mark_behind_spaces_and_a_trimming_template() -> None:
    tok = tokenizer(LLAMA_2)
    template = TokenizerTemplate(tok)
    turns = [*TURNS[:3], Message("assistant", " 5 \n")]
    pieces = template.render(turns)
    assert text(pieces) == own(tok, turns)
    assert trained(pieces) == [" 5 </s>", " 5 </s>"]
    with pytest.raises(
        UserError, match=r"refuses a conversation of system, user.*no system.*template: simple"
    ):
        template.render([SYSTEM, *TURNS])


def test_without_a_mark_the_next_special_token_ends_a_turn_and_eos_the_last() -> None:
    tok = tokenizer(GLM, ("<|user|>", "<|assistant|>"))
    pieces = TokenizerTemplate(tok).render(TURNS)
    assert trained(pieces) == ["5<|user|>", "5。\n\nDone</s>"]
    assert text(pieces) == own(tok, TURNS) + "</s>"
    assert TokenizerTemplate(tok).end_of_turn == "</s>"


def test_a_tools_result_has_the_mark_that_the_tokenizer_knows() -> None:
    tok = tokenizer(GLM, ("<|user|>", "<|assistant|>", "<|observation|>"))
    turns = [TURNS[0], Message("assistant", "add(2,3)"), Message("tool", "5"), TURNS[1]]
    pieces = TokenizerTemplate(tok).render(turns)
    assert trained(pieces) == ["add(2,3)<|observation|>", "5</s>"]
    assert "<|observation|>\n5<|assistant|>" in text(pieces)
    pieces = TokenizerTemplate(tokenizer(GLM, ("<|user|>", "<|assistant|>"))).render(turns)
    assert "<|tool|>\n5<|assistant|>" in text(pieces)


def test_a_plain_template_ends_its_last_turn_with_eos() -> None:
    pieces = TokenizerTemplate(tokenizer(PLAIN)).render(TURNS)
    assert trained(pieces) == ["5", "5。\n\nDone</s>"]


def test_a_template_that_adds_to_its_last_turn_only() -> None:
    tok = tokenizer(THINKING, ("<|im_end|>",))
    pieces = TokenizerTemplate(tok).render(TURNS)
    assert text(pieces) == own(tok, TURNS)
    assert trained(pieces) == ["5<|im_end|>", "<think>\n\n</think>\n\n5。\n\nDone<|im_end|>"]


def test_a_template_that_closes_the_whole_conversation_once_more() -> None:
    # Phi-3's manner: the eos behind the last mark is not what ends a turn
    template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}" + (
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
    )
    tok = tokenizer(template, ("<|end|>",))
    pieces = TokenizerTemplate(tok).render(TURNS)
    assert trained(pieces) == ["5<|end|>", "5。\n\nDone<|end|>"]
    assert pieces[-1].text == "\n</s>"
    assert text(pieces) == own(tok, TURNS)


def test_a_template_with_another_mark_for_its_last_turn() -> None:
    # GPT-OSS's manner
    template = (
        "{% for m in messages %}<|start|>{{ m.role }}{{ '<|channel|>final' if m.role == 'assistant' }}<|message|>"
        "{{ m.content }}{{ '<|return|>' if m.role == 'assistant' and loop.last else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    tok = tokenizer(template, ("<|end|>", "<|return|>"))
    pieces = TokenizerTemplate(tok).render(TURNS)
    opening = "<|channel|>final<|message|>"
    assert trained(pieces) == [f"{opening}5<|end|>", f"{opening}5。\n\nDone<|return|>"]


def test_a_template_that_opens_an_answer_with_thoughts_but_forgets_them_later() -> None:
    # Qwen3.5's manner: earlier turns are shown without the <think> that a generation begins with
    template = THINKING.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
    assert template != THINKING
    tok = tokenizer(template, ("<|im_end|>",))
    assert trained(TokenizerTemplate(tok).render(TURNS)) == ["5<|im_end|>", "5。\n\nDone<|im_end|>"]
    # but where the last answer itself would be generated behind other text, nothing honest can be trained
    with pytest.raises(UserError, match="before turn 2"):
        TokenizerTemplate(tokenizer(CHATML.replace("assistant\n{%", "assistant\n<think>{%"))).render(
            TURNS[:2]
        )


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (
            FORGETS_THOUGHTS,
            [TURNS[0], Message("assistant", "<think>x</think>5"), *TURNS[2:]],
            r"rewrites turn 2",
        ),
        (HIDES_SYSTEM, [SYSTEM, *TURNS], r"does not show turn 1 \(system\)"),
        (ONE_ANSWER_ONLY, TURNS, r"before turn 2 \(assistant\) differently"),
    ],
)
def test_a_template_that_cannot_be_trained_honestly_is_refused(
    template: str, messages: list[Message], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        TokenizerTemplate(tokenizer(template, ("<|im_end|>",))).render(messages)
    assert "template: simple" in str(caught.value)


def test_a_given_beginning_is_shown_but_not_trained() -> None:
    turns = [TURNS[0], Message("assistant", "五", prefix="答：")]
    for template in (TokenizerTemplate(tokenizer(CHATML)), SimpleTemplate("<|im_end|>")):
        pieces = template.render(turns)
        assert trained(pieces) == ["五<|im_end|>"]
        assert pieces[0].text.endswith("\n答：")
        assert pieces[0].text == prompt_text(template, turns[:1], prefix="答：")


def test_tools_reach_the_template() -> None:
    tok = tokenizer("{% if tools %}{{ tools | tojson }}\n{% endif %}" + CHATML)
    pieces = TokenizerTemplate(tok).render(TURNS, tools='[{"name": "add"}]')
    assert pieces[0].text.startswith('[{"type": "function", "function": {"name": "add"}}]\n')
    assert trained(pieces) == ["5<|im_end|>", "5。\n\nDone<|im_end|>"]
    assert SimpleTemplate("</s>").render(TURNS, tools="[]")[0].text.startswith("Tools:\n[]\nUser:\n")


def test_the_simple_template_by_hand() -> None:
    turns = [SYSTEM, TURNS[0], Message("assistant", "add(2,3)"), Message("tool", "5"), TURNS[1]]
    assert SimpleTemplate("</s>").render(turns) == [
        Piece("System:\n你很简短。\nUser:\n2+3=?\nAssistant:\n", False),
        Piece("add(2,3)</s>", True),
        Piece("\nTool:\n5\nAssistant:\n", False),
        Piece("5</s>", True),
        Piece("\n", False),
    ]


def test_the_choice_of_a_template() -> None:
    with_own, without = tokenizer(CHATML), tokenizer(None)
    assert isinstance(choose_template(with_own), TokenizerTemplate)
    assert isinstance(choose_template(with_own, "simple"), SimpleTemplate)
    assert choose_template(without) == SimpleTemplate("</s>")
    with pytest.raises(UserError, match=r"no chat template; use `template: simple`"):
        choose_template(without, "tokenizer")
    with pytest.raises(UserError, match="Did you mean 'simple'"):
        choose_template(without, "simpel")
    without.eos_token = None
    with pytest.raises(UserError, match="set eos_token"):
        choose_template(without)


@pytest.mark.slow
def test_real_conversations_come_through_whole(shared: Path) -> None:
    from espalier.data.read.sources import DatasetSpec

    tok = tokenizer(CHATML)
    template = TokenizerTemplate(tok)
    for name in ("sharegpt_zh", "llamafactory_demo/glaive_toolcall_zh_demo.json"):
        for chat in load_records([DatasetSpec(str(shared / "data" / name))], "chat", skip_bad=True).records[
            :150
        ]:
            pieces = template.render(chat.messages)
            assert text(pieces) == own(tok, chat.messages)
            answers = [message.content for message in chat.messages if message.role == "assistant"]
            assert trained(pieces) == [answer + "<|im_end|>" for answer in answers]
