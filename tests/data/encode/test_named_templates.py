"""Every template of the table: what is trained decodes to the answers, and the texts are the formats' own."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from espalier.data.encode.encoding import Piece, encode_pieces
from espalier.data.encode.named_templates import NamedTemplate, forms
from espalier.data.encode.templates import choose_template, prompt_text
from espalier.data.records import Message
from espalier.errors import UserError
from espalier.models.load import train_tokenizer
from tests.conftest import Vocabulary

TURNS = [
    Message("user", "春眠不觉晓，下一句是什么？"),
    Message("assistant", "处处闻啼鸟。"),
    Message("user", "{content} {n} Again, please\n"),
    Message("assistant", "  Birds are heard\n\neverywhere ", prefix="答 "),
    Message("user", "谢谢"),
    Message("assistant", "不客气😀"),
]
SPECIALS = [
    "<s>", "<|im_start|>", "<|im_end|>", "<eoa>", "<eom>", "<eoh>", "<|eot_id|>", "<end_of_turn>", "<start_of_turn>",
    "<|end|>", "<reserved_102>", "<reserved_103>", "<reserved_106>", "<reserved_107>", "<|user|>", "<|assistant|>",
]  # fmt: skip


@pytest.fixture(scope="module", params=["made here", "byte-level BPE", "sentencepiece with bytes"])
def marked(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of each kind that knows all marks of the table as tokens."""
    from transformers import AutoTokenizer

    if request.param == "made here":
        made = train_tokenizer([turn.content for turn in TURNS] * 3, 400)
        made.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": SPECIALS})
        return made
    vocabulary: Vocabulary = request.getfixturevalue("vocabulary")
    folder = vocabulary("aquila_bpe")
    if request.param != "byte-level BPE":
        request.getfixturevalue(
            "shared"
        )  # a small one has no token for two spaces, and Llama's class eats one
        folder = tmp_path_factory.mktemp("baichuan2")
        shutil.copy(vocabulary("baichuan2") / "tokenizer.model", folder)
        names = {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "tokenizer_class": "LlamaTokenizer",
        }
        (folder / "tokenizer_config.json").write_text(
            json.dumps({**names, "legacy": False}), encoding="utf-8"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": SPECIALS})
    return tokenizer


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("name", sorted(forms()))
@pytest.mark.parametrize("opening", [[], [Message("system", "你很简短。")]], ids=["plain", "system"])
def test_what_is_trained_decodes_to_every_answer_with_its_end(
    marked: Any, name: str, opening: list[Message]
) -> None:
    template = choose_template(marked, name)
    pieces = template.render([*opening, *TURNS])
    [(ids, flags)] = encode_pieces(marked, [pieces], bos=False)
    spans: list[list[int]] = []
    for place, (token, flag) in enumerate(zip(ids, flags, strict=True)):
        if flag and not (place and flags[place - 1]):
            spans.append([])
        if flag:
            spans[-1].append(token)
    end = marked.convert_tokens_to_ids(template.end_of_turn)
    answers = [turn.content for turn in TURNS if turn.role == "assistant"]
    assert [marked.decode(span[:-1], clean_up_tokenization_spaces=False) for span in spans] == answers
    assert [span[-1] for span in spans] == [end] * 3
    assert marked.decode(ids, clean_up_tokenization_spaces=False) == text(pieces)


@pytest.mark.parametrize("name", sorted(forms()))
def test_what_is_generated_from_stands_before_the_answer_in_training(name: str) -> None:
    template = NamedTemplate(forms()[name], "</s>")
    for index, turn in enumerate(TURNS):
        if turn.role == "assistant":
            before = prompt_text(template, TURNS[:index], prefix=turn.prefix)
            assert text(template.render(TURNS[: index + 1])) == before + turn.content + "</s>"
    for turn in TURNS:
        assert turn.content in text(template.render(TURNS)), "nothing is hidden"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vanilla", "q1|a1</s>|q2|a2</s>"),
        ("alpaca", "S\n\n### Instruction:\nq1\n\n### Response:\n|a1</s>|\n\n### Instruction:\nq2\n\n### Response:\n|a2</s>"),
        ("vicuna", "S USER: q1 ASSISTANT: |a1</s>|USER: q2 ASSISTANT: |a2</s>"),
        ("default", "S\nHuman: q1\nAssistant: |a1</s>|\nHuman: q2\nAssistant: |a2</s>"),
        ("belle", "Human: q1\n\nBelle: |a1</s>|\n\nHuman: q2\n\nBelle: |a2</s>"),
        ("linly", "User: q1\nBot: |a1</s>|\nUser: q2\nBot: |a2</s>"),
        ("ziya", "<human>:q1\n<bot>:|a1</s>|\n<human>:q2\n<bot>:|a2</s>"),
        ("aquila", "S###Human: q1###Assistant:|a1</s>|###Human: q2###Assistant:|a2</s>"),
        ("firefly", "<s>q1</s>|a1</s>|<s>q2</s>|a2</s>"),
        ("internlm", "<|User|>:q1<eoh>\n<|Bot|>:|a1<eoa>|\n<|User|>:q2<eoh>\n<|Bot|>:|a2<eoa>"),
        ("baichuan", "<reserved_102>q1<reserved_103>|a1</s>|<reserved_102>q2<reserved_103>|a2</s>"),
        ("baichuan2", "<reserved_106>q1<reserved_107>|a1</s>|<reserved_106>q2<reserved_107>|a2</s>"),
        ("chatglm", "[Round 1]\n\n问：q1\n\n答：|a1</s>|\n\n[Round 2]\n\n问：q2\n\n答：|a2</s>"),
        ("chatglm2", "[Round 1]\n\n问：q1\n\n答：|a1</s>|\n\n[Round 2]\n\n问：q2\n\n答：|a2</s>"),
        ("chatglm3", "<|user|>\nq1<|assistant|>\n|a1</s>|<|user|>\nq2<|assistant|>\n|a2</s>"),
        ("moss", "<|Human|>: q1<eoh>\n<|MOSS|>:|a1<eom>|\n<|Human|>: q2<eoh>\n<|MOSS|>:|a2<eom>"),
        ("rwkv", "Bob: q1\n\nAlice:|a1</s>|\n\nBob: q2\n\nAlice:|a2</s>"),
        ("llama2", "[INST] q1 [/INST] |a1</s>|<s>[INST] q2 [/INST] |a2</s>"),
        ("linksoul", "[INST] <<SYS>>\nS\n<</SYS>>\n\nq1[/INST]|a1</s>|<s> [INST] q2[/INST]|a2</s>"),
        ("qwen", "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n|a1<|im_end|>|\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n|a2<|im_end|>"),
        ("yi", "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n|a1<|im_end|>|\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n|a2<|im_end|>"),
        ("xverse", "Human: q1\n\nAssistant: |a1</s>|\n\nHuman: q2\n\nAssistant: |a2</s>"),
        ("tigerbot", "### Instruction:\nq1\n\n### Response:\n|a1</s>|\n\n### Instruction:\nq2\n\n### Response:\n|a2</s>"),
    ],
)  # fmt: skip
def test_each_format_as_it_is_known(name: str, wanted: str) -> None:
    form = forms()[name]
    turns = [
        Message(role, f"{role[0].replace('u', 'q')}{n}") for n in (1, 2) for role in ("user", "assistant")
    ]
    pieces = NamedTemplate(form, form.end or "</s>").render(turns)
    said = "|".join(piece.text for piece in pieces)
    assert said == (wanted.replace("S", form.system, 1) if form.system and wanted.startswith("S") else
                    wanted.replace("\nS", f"\n{form.system}", 1))  # fmt: skip
    assert [piece.trained for piece in pieces] == [False, True, False, True]


def test_system_turns_go_where_the_format_has_them() -> None:
    turns = [Message("system", "简短"), Message("user", "q"), Message("assistant", "a")]
    said = {name: text(NamedTemplate(forms()[name], "</s>").render(turns)) for name in forms()}
    assert said["llama2"] == "[INST] <<SYS>>\n简短\n<</SYS>>\n\nq [/INST] a</s>"
    assert said["alpaca"].startswith("简短\n\n### Instruction:")
    assert said["qwen"].startswith("<|im_start|>system\n简短<|im_end|>\n") and "helpful" not in said["qwen"]
    assert all(text.count("简短") == 1 for text in said.values())


def test_tools_and_their_results_are_shown() -> None:
    tools = '[{"name": "weather"}]'
    turns = [
        Message("user", "q"),
        Message("assistant", '{"name": "weather"}'),
        Message("tool", "晴"),
        Message("assistant", "a"),
    ]
    for name, form in forms().items():
        said = text(NamedTemplate(form, "</s>").render(turns, tools=tools))
        assert tools in said and said.index(tools) < said.index("晴") < said.rindex("a</s>"), name
    assert "<|im_start|>tool\n晴<|im_end|>\n" in text(NamedTemplate(forms()["qwen"], "</s>").render(turns))


def test_an_end_that_is_no_token_is_refused(aquila: Any) -> None:
    with pytest.raises(UserError, match=r"template: internlm ends an answer with <eoa>, which is no token"):
        choose_template(aquila, "internlm")
    with pytest.raises(UserError, match="Did you mean 'xverse'"):
        choose_template(aquila, "xvers")
    assert choose_template(aquila, "yi").end_of_turn == "<|im_end|>"
