"""Conversations of the old chat models, as texts and as trained tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from espalier.data.encode.encoding import encode_pieces
from espalier.data.encode.templates import choose_template, prompt_text
from espalier.data.read.tool_calls import python_call
from espalier.data.records import Message
from espalier.errors import UserError
from espalier.models.legacy import baichuan, chatglm, chatglm2, glm, internlm, pangu
from espalier.models.load import load_tokenizer, train_tokenizer
from tests.conftest import Vocabulary

ASKED = [
    Message("user", "你好"),
    Message("assistant", "好的"),
    Message("user", "再见"),
    Message("assistant", "走好"),
]


def written(template: str, messages: list[Message], *, prompt: bool = False) -> str:
    tokenizer = train_tokenizer(["你好"], 300)
    tokenizer.chat_template = template
    turns = [{"role": m.role, "content": m.content} for m in messages]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)


@pytest.mark.parametrize(
    ("template", "one", "two"),
    [
        (pangu.TEMPLATE, "你好<sep>好的<eot>", "你好<sep>好的<eot>再见<sep>走好<eot>"),
        (
            glm.TEMPLATE,
            "[CLS]你好[gMASK]<|endoftext|><|startofpiece|>好的<|endofpiece|>",
            "[CLS]你好\n好的\n再见[gMASK]<|endoftext|><|startofpiece|>走好<|endofpiece|>",
        ),
        (
            chatglm.TEMPLATE,
            "你好[gMASK]<sop>好的<eop>",
            "[Round 0]\n问：你好\n答：好的\n[Round 1]\n问：再见\n答：[gMASK]<sop>走好<eop>",
        ),
        (
            chatglm2.ROUNDS_TEMPLATE,
            "[gMASK]<sop>[Round 1]\n\n问：你好\n\n答：好的",
            "[gMASK]<sop>[Round 1]\n\n问：你好\n\n答：好的\n\n[Round 2]\n\n问：再见\n\n答：走好",
        ),
        (
            chatglm2.ROLES_TEMPLATE,
            "[gMASK]<sop><|user|>\n 你好<|assistant|>\n 好的",
            "[gMASK]<sop><|user|>\n 你好<|assistant|>\n 好的<|user|>\n 再见<|assistant|>\n 走好",
        ),
        (
            baichuan.template("<u>", "<a>"),
            "<u>你好<a>好的</s>",
            "<u>你好<a>好的</s><u>再见<a>走好</s>",
        ),
        (
            internlm.TEMPLATE,
            "<|User|>:你好<eoh>\n<|Bot|>:好的<eoa>\n",
            "<|User|>:你好<eoh>\n<|Bot|>:好的<eoa>\n<|User|>:再见<eoh>\n<|Bot|>:走好<eoa>\n",
        ),
    ],
)
def test_texts(template: str, one: str, two: str) -> None:
    assert written(template, ASKED[:2]) == one
    assert written(template, ASKED) == two
    for upto in (1, 3):  # what an answer is generated from is what stands before it in training
        prompt = written(template, ASKED[:upto], prompt=True)
        assert (one, two)[upto // 2].startswith(prompt + ASKED[upto].content)


def test_a_blank_of_one_s_own_is_kept() -> None:
    found = written(glm.TEMPLATE, [Message("user", "中国的首都是[MASK]。")], prompt=True)
    assert found == "[CLS]中国的首都是[MASK]。<|endoftext|><|startofpiece|>"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pangu", "glm_chinese_sp", "qwen", "baichuan2", "aquila_bpe"])
def test_the_answer_and_its_end_are_trained(
    name: str, vocabulary: Vocabulary, made_vocabulary: Vocabulary
) -> None:
    tokenizer: Any = load_tokenizer(str((made_vocabulary if name == "qwen" else vocabulary)(name)))
    template = choose_template(tokenizer)
    pieces = template.render(ASKED[:2])
    ((ids, flags),) = encode_pieces(tokenizer, [pieces], bos=False)
    trained = tokenizer.decode([i for i, flag in zip(ids, flags, strict=True) if flag])
    assert trained.replace(" ", "") == "好的" + template.end_of_turn
    prompt = prompt_text(template, ASKED[:1])
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert ids[: len(asked)] == asked
    assert not any(flags[: len(asked)])


@pytest.mark.slow
def test_only_the_last_answer_of_a_prefix_model_is_trained(vocabulary: Vocabulary) -> None:
    tokenizer: Any = load_tokenizer(str(vocabulary("glm_chinese_sp")))
    template = choose_template(tokenizer)
    with pytest.raises(UserError, match="turn 2"):
        template.render(ASKED)
    pieces = template.render(ASKED, train_from=3)
    assert "".join(p.text for p in pieces if p.trained) == "走好<|endofpiece|>"


def test_chatglm3_calls_tools_in_python() -> None:
    """As its documentation has it: the tool's name on the role's line, the call as Python, the result as observation."""
    tokenizer = train_tokenizer(["你好"], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>", *chatglm2.ROLES]})
    tokenizer.chat_template = chatglm2.ROLES_TEMPLATE
    arguments = {"city": "北京", "days": 3, "now": True, "unit": None, "of": [1.5, "it's"], "text": 'a\nb"c'}
    function = {"name": "weather", "arguments": arguments}
    call = json.dumps([{"type": "function", "function": function}], ensure_ascii=False)
    tool = {"name": "weather", "description": "d", "parameters": {}}
    messages = [Message("user", "天气?"), Message("assistant", "我查。", calls=call), Message("tool", "21"),
                Message("assistant", "21 度"), Message("user", "谢谢")]  # fmt: skip
    written = (
        "weather\n ```python\ntool_call(" + ", ".join(f"{k}={v!r}" for k, v in arguments.items()) + ")\n```"
    )
    assert python_call(written) == call
    pieces = choose_template(tokenizer).render(messages, tools=json.dumps([tool]))
    listed = json.dumps([tool], ensure_ascii=False, indent=4)
    wanted = (
        "[gMASK]<sop><|system|>\n Answer the following questions as best as you can. You have access to the following "
        f"tools:\n{listed}<|user|>\n 天气?<|assistant|>\n 我查。<|assistant|>{written}<|observation|>\n 21<|assistant|>"
        "\n 21 度<|user|>\n 谢谢"
    )
    assert "".join(piece.text for piece in pieces) == wanted
    assert [p.text for p in pieces if p.trained] == [
        f"\n 我查。<|assistant|>{written}<|observation|>",
        "\n 21 度<|user|>",
    ]
