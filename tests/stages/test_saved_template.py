"""What is saved is what was trained: the template, and where answers end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.data.encode.named_templates import forms, name_in
from espalier.data.encode.templates import choose_template
from espalier.models.load import load_tokenizer
from tests.stages.conftest import run

Make = Callable[..., dict[str, Any]]


@pytest.mark.slow
def test_a_named_template_is_the_model_s_own_from_then_on(options: Make, world: Path) -> None:
    chosen = options("sft", template="alpaca", cutoff_len=512, max_steps=1, samples=0, eval_steps=0)
    run(chosen)
    folder = Path(chosen["output_dir"]) / "sft" / "model"
    before, after = load_tokenizer(str(world / "base")), load_tokenizer(str(folder))
    assert choose_template(before) != choose_template(after) == choose_template(before, "alpaca")
    assert choose_template(after).form == forms()["alpaca"]
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert before.convert_tokens_to_ids(choose_template(after).end_of_turn) in (
        ends if isinstance(ends, list) else [ends]
    )
    later = options(
        "dpo", model_name_or_path=str(folder), cutoff_len=512, max_steps=1, samples=0, eval_steps=0
    )
    run(later)
    last = load_tokenizer(str(Path(later["output_dir"]) / "dpo" / "model"))
    assert last.chat_template == after.chat_template and name_in(last.chat_template) == "alpaca"


@pytest.mark.slow
def test_documents_leave_the_tokenizer_as_it_is(options: Make, world: Path) -> None:
    chosen = options("pretrain", template="alpaca", cutoff_len=512, max_steps=1, samples=0, eval_steps=0)
    run(chosen)
    saved = load_tokenizer(str(Path(chosen["output_dir"]) / "pretrain" / "model"))
    assert saved.chat_template == load_tokenizer(str(world / "base")).chat_template
