"""What is shown as trained, read and cut is exactly what is trained, read and cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from espalier.commands.inspect.coloured import CUT, READ, TRAINED, Branch, shown, written
from espalier.data.encode.templates import choose_template
from espalier.data.encode.tokenise import Encoder
from espalier.data.records import Message, Record
from espalier.models.load import train_tokenizer

ASKED, SAID = Message("user", "春眠不觉晓？"), Message("assistant", "处处闻啼鸟。")
CHAT = Record.chat((ASKED, SAID, Message("user", "再来"), Message("assistant", "好")), "c.jsonl:3")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    tokenizer: Any = train_tokenizer(["春眠不觉晓处处闻啼鸟再来好", "a b c d"], 300)
    return Encoder(tokenizer, choose_template(tokenizer, "simple"), 512, "trim")


def of(branch: Branch, kind: str) -> str:
    return "".join(text for what, text in branch.spans if what == kind)


def test_every_answer_is_green_with_its_end_and_nothing_else(encoder: Encoder) -> None:
    found = shown(CHAT, encoder)
    [branch] = found.branches
    end = encoder.template.end_of_turn
    assert of(branch, TRAINED) == f"处处闻啼鸟。{end}好{end}" and of(branch, CUT) == ""
    assert found.source == "c.jsonl:3" and found.notes == [] and found.trained
    plain = written(CHAT, encoder.template).branches[0]
    assert plain.spans == branch.spans


def test_the_answers_of_pairs_rankings_and_labels_are_named(encoder: Encoder) -> None:
    good, bad = (Message("assistant", "好"),), (Message("assistant", "坏"),)
    records: list[tuple[Record, list[str]]] = [
        (Record.preference((ASKED,), good, bad), ["chosen", "rejected"]),
        (Record.ranking((ASKED,), ((good, 2.5), (bad, -1.0))), ["score 2.5", "score -1"]),
        (Record.unpaired((ASKED,), bad, label=False), ["bad"]),
    ]
    for record, labels in records:
        for found in (shown(record, encoder), written(record, encoder.template)):
            assert [branch.label for branch in found.branches] == labels
            assert all("春眠不觉晓" in of(branch, READ) for branch in found.branches)


def test_a_prompt_is_only_read(encoder: Encoder) -> None:
    text, reference = shown(Record("prompt", (ASKED,), reference="处处"), encoder).branches
    assert of(text, TRAINED) == "" and reference.spans == [(READ, "处处")]


@pytest.mark.parametrize("limit", range(6, 60, 5))
def test_kept_and_cut_together_are_the_whole(limit: int, encoder: Encoder) -> None:
    for record in (
        CHAT,
        Record.chat((Message("user", "春" * 30), SAID)),
        Record.chat((ASKED, Message("assistant", "鸟" * 40))),
    ):
        whole = shown(record, encoder)
        found = shown(record, replace(encoder, cutoff_len=limit))
        if (whole.tokens or 0) <= limit:
            assert found == whole
            continue
        assert found.notes and all(note.startswith(("trimmed", "dropped")) for note in found.notes)
        cut = of(found.branches[0], CUT)
        if cut and found.tokens and "\ufffd" not in cut:
            text = "".join(text for _, text in found.branches[0].spans)
            assert text == "".join(text for _, text in whole.branches[0].spans)


def test_a_dropped_record_is_all_cut_and_says_why(encoder: Encoder) -> None:
    found = shown(CHAT, replace(encoder, cutoff_len=8, overlong="drop"))
    assert found.notes == ["dropped: longer than cutoff_len"]
    assert [kind for kind, _ in found.branches[0].spans] == [CUT]


def test_a_long_document_is_shown_in_its_pieces_and_characters_stay_whole(encoder: Encoder) -> None:
    found = shown(Record.document("语言模型" * 20, "t:1"), replace(encoder, cutoff_len=512))
    assert "\ufffd" not in "".join(text for _, text in found.branches[0].spans)
    pieces = shown(Record.document("abcd " * 100, "t:1"), replace(encoder, cutoff_len=64))
    assert len(pieces.branches) > 1 and "nothing is lost" in pieces.notes[0]


def test_of_a_long_record_both_ends_are_shown(encoder: Encoder) -> None:
    encoder = replace(encoder, cutoff_len=100_000)
    found = shown(
        Record.chat((Message("user", "问" * 9000), Message("assistant", "答" * 9000)), "c:1"), encoder
    )
    text = "".join(text for _, text in found.branches[0].spans)
    assert len(text) < 4100 and "characters …" in text, len(text)
    assert text.count("问") > 1900 < text.count("答")
    found = shown(Record.document("语" * 300_000, "t:1"), encoder)
    assert "300,000 characters" in found.notes[0] and len(found.branches[0].spans[0][1]) < 4100
