"""The Jinja that is saved for a named template gives other programs the ids that were trained, for any conversation."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from espalier.data.encode.encoding import adds_bos, encode_pieces, leading
from espalier.data.encode.jinja_form import as_jinja
from espalier.data.encode.named_templates import forms, name_in, named_template
from espalier.data.encode.templates import TokenizerTemplate, choose_template
from espalier.data.encode.turns import as_functions
from espalier.data.records import Message
from espalier.errors import UserError
from espalier.models.load import train_tokenizer
from tests.data.encode.test_law import conversations


@pytest.fixture(scope="module", params=[False, True], ids=["no bos", "bos"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    made = train_tokenizer(["some text of its own"] * 9, 300)
    ends = {form.end for form in forms().values() if form.end}
    made.add_special_tokens({"additional_special_tokens": sorted(ends)})
    made.chat_template = None
    if request.param:
        made.add_special_tokens({"bos_token": "<s>"})
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
        )
    assert adds_bos(made) == request.param
    return made


def theirs(tokenizer: Any, messages: list[Message], tools: str | None, *, asking: bool) -> list[int]:
    """As another program writes and encodes a conversation."""
    turns = [{k: v for k, v in message.as_turn().items() if k != "weight"} for message in messages]
    found: list[int] = tokenizer.apply_chat_template(
        turns, tools=as_functions(tools), add_generation_prompt=asking, return_dict=False
    )
    return found


@pytest.mark.parametrize("name", ["simple", *forms()])
def test_it_writes_what_the_template_writes(tokenizer: Any, name: str) -> None:
    template = choose_template(tokenizer, name)
    written = as_jinja(template, tokenizer)
    assert name_in(written) is not None and choose_template(tokenizer, str(name_in(written))) == template
    other = copy.deepcopy(tokenizer)
    other.chat_template = written

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(conversation=conversations())
    def hold(conversation: tuple[list[Message], str | None]) -> None:
        messages, tools = conversation
        tools = json.dumps(as_functions(tools), ensure_ascii=False) if tools else None
        for asking in (False, True):
            try:
                pieces = template.render(messages, tools=tools, add_generation_prompt=asking)
            except UserError:  # no place for thoughts
                return
            ((ours, _),) = encode_pieces(tokenizer, [pieces], bos=adds_bos(tokenizer))
            # The same text may be cut into pieces at the edge of what is trained.
            assert other.decode(theirs(other, messages, tools, asking=asking)) == tokenizer.decode(ours)
            text = "".join(p.text for p in pieces)
            whole = leading(tokenizer, text) + tokenizer(text, add_special_tokens=False).input_ids
            assert theirs(other, messages, tools, asking=asking) == whole

    hold()


def test_a_saved_folder_is_read_by_the_name_and_by_others_as_jinja(tokenizer: Any, tmp_path: Path) -> None:
    template = named_template(tokenizer, "alpaca")
    made = copy.deepcopy(tokenizer)
    made.chat_template = as_jinja(template, made)
    made.save_pretrained(str(tmp_path))
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    assert choose_template(again, "auto") == choose_template(again, "tokenizer") == template
    assert as_jinja(TokenizerTemplate(again), again) is None, "nothing else is replaced"
    (messages,) = [[Message("user", "2+3=?")]]
    shown = again.decode(theirs(again, messages, None, asking=True))
    assert shown.endswith("### Instruction:\n2+3=?\n\n### Response:\n") and "Below is an instruction" in shown


def test_an_unknown_name_is_told_the_nearest(tokenizer: Any) -> None:
    for name, near in {"qwen3_nothink": "qwen3", "alpace": "alpaca", "chatml_thing": "chatml"}.items():
        with pytest.raises(
            UserError, match=rf"unknown template '{name}'\. Did you mean '{near}'\? `auto` is the model's own"
        ):
            choose_template(tokenizer, name)
