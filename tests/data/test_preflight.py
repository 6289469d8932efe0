"""The preflight finds every planted fault, counts it, names its place, and says nothing of a clean set."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from espalier.cli import app
from espalier.data.encode.templates import choose_template
from espalier.data.encode.tokenise import Encoder, encode_all
from espalier.data.preflight.findings import ERROR, HELD_OUT, TRAIN, WARNING, Finding, stop_at_errors
from espalier.data.preflight.look import histogram, quantiles
from espalier.data.preflight.run import Preflight, PreflightReport, Source
from espalier.data.preflight.text import blocks, lines, share
from espalier.data.read.account import Account
from espalier.data.read.specs import parse_specs
from espalier.data.records import Message, Record
from espalier.data.store.job import Job
from espalier.data.store.open import ReadSettings, opened
from espalier.data.store.stack import Choice, Stack
from espalier.data.store.table import has_equal_answers, role_order
from espalier.errors import UserError
from espalier.models.load import train_tokenizer
from espalier.trees.tree import Tree
from tests.data.listed import load_records

Row = dict[str, Any]
CHATS = [{"instruction": f"第{i}个问题是什么？", "output": f"这是第{i}个回答。"} for i in range(40)]
PAIRS = [
    {"prompt": f"第{i}个问题？", "chosen": f"好的回答{i}。", "rejected": f"坏的回答{i}。"} for i in range(30)
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([row["instruction"] + row["output"] for row in CHATS] + ["abc def"], 400)


def file(folder: Path, name: str, rows: list[Row | str]) -> str:
    path = folder / name
    path.write_text(
        "".join(
            (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows
        ),
        "utf-8",
    )
    return str(path)


def flown(
    tokenizer: Any,
    train: str,
    held_out: str | None = None,
    *,
    kind: str = "chat",
    stop: tuple[int, ...] | None = None,
    answers_trained: bool = True,
    backwards: bool = False,
    **options: Any,
) -> PreflightReport:
    """The preflight of one or two files, as a run makes it."""
    encoder = Encoder(
        tokenizer,
        choose_template(tokenizer),
        options.get("cutoff_len", 512),
        options.get("overlong", "trim"),
        answers_trained,
    )
    found = Preflight(encoder.cutoff_len, lambda tree: f"<{tree.source}>")
    job = Job(kind, encoder, stop=encoder.stop if stop is None else stop)
    chosen = {TRAIN: Choice(Stack([])), HELD_OUT: Choice(Stack([]))}
    with tempfile.TemporaryDirectory() as folder:
        for part, path in ((TRAIN, train), (HELD_OUT, held_out)):
            if path:
                stack, _, loaded = opened(parse_specs(path), job, ReadSettings(Path(folder), skip_bad=True))
                found.read(part, loaded)
                chosen[part] = Choice(stack)
    for part, choice in reversed(chosen.items()) if backwards else chosen.items():
        found.part(part, choice)
    return found.report()


def only(result: PreflightReport) -> Finding:
    assert len(result.findings) == 1, [f.what for f in result.findings]
    return result.findings[0]


def test_a_clean_set_gives_facts_and_no_warning(tokenizer: Any, tmp_path: Path) -> None:
    train, held = file(tmp_path, "a.jsonl", CHATS[:30]), file(tmp_path, "b.jsonl", CHATS[30:])
    result = flown(tokenizer, train, held)
    assert result.findings == [] and result.left_out == [] and result.read == 40
    assert result.sources[train] == Source(30, {"alpaca": 30})
    part = result.parts[TRAIN]
    assert part.records == part.trees == 30 and part.languages == {"zh": 1.0}
    assert part.roles == {"user, assistant": 30}
    assert sum(count for _, _, count in part.histogram) == 30
    assert lines(result, whole=True)[-1] == ("", "nothing to warn of")
    assert json.loads(json.dumps(result.as_json())) == result.as_json()


def test_parts_may_come_in_any_order(tokenizer: Any, tmp_path: Path) -> None:
    train, held = file(tmp_path, "a.jsonl", CHATS[:30]), file(tmp_path, "b.jsonl", CHATS[25:])
    first, last = (flown(tokenizer, train, held, backwards=way) for way in (False, True))
    assert first.findings and first == last


def test_the_numbers_are_those_of_the_trees(tokenizer: Any, tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", CHATS)
    encoder = Encoder(tokenizer, choose_template(tokenizer), 512)
    trees, _ = encode_all(load_records(parse_specs(path), "chat").records, encoder)
    part = flown(tokenizer, path).parts[TRAIN]
    assert part.tokens == sum(tree.n_tokens for tree in trees)
    assert part.trained_tokens == sum(tree.n_trained for tree in trees)
    assert part.lengths["longest"] == max(tree.longest_path for tree in trees)


def test_pairs_clean(tokenizer: Any, tmp_path: Path) -> None:
    for trained in (True, False):
        result = flown(
            tokenizer, file(tmp_path, "p.jsonl", PAIRS), kind="preference", answers_trained=trained
        )
        assert result.findings == []
        assert result.parts[TRAIN].roles == {"user -> answers": 30}


def test_bad_records_and_a_broken_order_of_turns_have_place_reason_and_share(
    tokenizer: Any, tmp_path: Path
) -> None:
    turns = [{"role": r, "content": "x"} for r in ("user", "user", "assistant")]
    rows = [*CHATS[:7], {"messages": turns}, *CHATS[7:17], {"instruction": "a", "output": ""}, CHATS[18]]
    path = file(tmp_path, "a.jsonl", rows)
    found = {finding.what: finding for finding in flown(tokenizer, path).findings}
    assert set(found) == {"bad record: odd role order", "bad record: empty text"}
    order = found["bad record: odd role order"]
    assert (order.count, order.of, order.place) == (1, 20, f"{path}:8")
    assert "turn 2 is user after user" in order.advice and order.level == WARNING


@pytest.mark.parametrize("overlong", ["drop", "trim"])
def test_what_is_cut_or_dropped_is_counted_with_its_cause(
    overlong: str, tokenizer: Any, tmp_path: Path
) -> None:
    long = {"instruction": "问", "output": "答" * 300}
    path = file(tmp_path, "a.jsonl", [*CHATS[:8], long, long])
    result = flown(tokenizer, path, cutoff_len=64, overlong=overlong)
    causes = {
        "drop": ["dropped: longer than cutoff_len"],
        "trim": ["trimmed: beginning of the prompt", "trimmed: end of the answer, its end token too"],
    }
    assert [finding.what for finding in result.findings] == causes[overlong]
    for finding in result.findings:
        assert (finding.count, finding.of, finding.place) == (2, 10, f"{path}:9")
        assert finding.level == WARNING and "cutoff_len" in finding.advice


def test_a_missing_end_token_stops_a_run_and_is_drawn(tokenizer: Any, tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", CHATS)
    result = flown(tokenizer, path, stop=(999_999,))
    finding = only(result)
    assert (finding.level, finding.count, finding.place) == (ERROR, 40, f"{path}:1")
    with pytest.raises(UserError, match=rf"(?s)a\.jsonl:1: .*never learn to stop.*<{path}:1>"):
        stop_at_errors(result.findings)


def test_a_missing_end_token_of_judged_answers_is_a_warning(tokenizer: Any, tmp_path: Path) -> None:
    path = file(tmp_path, "p.jsonl", PAIRS)
    result = flown(tokenizer, path, kind="preference", answers_trained=False, stop=(999_999,))
    assert only(result).level == WARNING
    stop_at_errors(result.findings)


def test_held_out_prompts_that_are_trained_on(tokenizer: Any, tmp_path: Path) -> None:
    train = file(tmp_path, "a.jsonl", CHATS[:30])
    again = {"instruction": CHATS[4]["instruction"], "output": "另一个回答"}
    held = file(tmp_path, "b.jsonl", [*CHATS[30:], again, CHATS[9], again])
    finding = only(flown(tokenizer, train, held))
    assert (finding.count, finding.of, finding.part) == (3, 13, HELD_OUT)
    assert finding.place == f"{held}:11" and f"{train}:5" in finding.what


def test_equal_answers_are_found_where_they_are_read_and_where_they_are_tokens(
    tokenizer: Any, tmp_path: Path
) -> None:
    same = {"prompt": "问", "chosen": "答", "rejected": "答"}
    path = file(tmp_path, "p.jsonl", [*PAIRS[:9], same])
    finding = only(flown(tokenizer, path, kind="preference"))
    assert (finding.what, finding.count, finding.of) == ("chosen equals rejected", 1, 10)
    assert finding.place == f"{path}:10"
    for trained in (True, False):
        paths = [([1, 2, 3], [False, trained, trained])] * 2
        assert has_equal_answers(Tree.join(paths))
        other = [*paths[:1], ([1, 2, 4], [False, trained, trained])]
        assert not has_equal_answers(Tree.join(other))


def test_a_ranking_with_one_answer_scored_twice(tokenizer: Any, tmp_path: Path) -> None:
    answers = [{"answer": "甲", "score": 2}, {"answer": "乙", "score": 1}, {"answer": "甲", "score": 0}]
    harmless = [{"answer": "甲", "score": 2}, {"answer": "乙", "score": 1}, {"answer": "乙", "score": 1}]
    rows: list[Row | str] = [{"prompt": "问", "answers": harmless}, {"prompt": "再问", "answers": answers}]
    path = file(tmp_path, "r.jsonl", rows)
    for trained in (True, False):
        finding = only(flown(tokenizer, path, kind="ranking", answers_trained=trained))
        assert (finding.what, finding.count) == ("equal answers with different judgements", 1)
        assert finding.place == f"{path}:2"


def test_a_copy_with_swapped_labels_contradicts_every_pair(tokenizer: Any, tmp_path: Path) -> None:
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS[:5]]
    path = file(tmp_path, "p.jsonl", [*PAIRS, *swapped])
    finding = only(flown(tokenizer, path, kind="preference"))
    assert (finding.count, finding.of, finding.place) == (5, 35, f"{path}:31")
    assert f"{path}:1" in finding.what


def test_a_held_out_part_in_another_language(tokenizer: Any, tmp_path: Path) -> None:
    english = [{"instruction": f"Question {i}?", "output": "An answer."} for i in range(8)]
    held = file(tmp_path, "b.jsonl", english)
    finding = only(flown(tokenizer, file(tmp_path, "a.jsonl", CHATS), held))
    assert finding.what == "held-out records read as en, and 0% of train"


def test_what_the_options_ask_for_is_told_but_no_warning(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", CHATS)
    loaded = load_records(parse_specs(path), "chat", max_samples=30)
    found = Preflight(64, str)
    found.read("dataset", loaded)
    result = found.report()
    assert result.findings == [] and result.left_out[0].count == 10
    assert any("left out: 10 (25 %) max_samples" in text for _, text in lines(result, whole=False))


def test_an_account_keeps_the_first_place_of_each_cause() -> None:
    one, other = Account(), Account()
    one.add("a", "x:1", "why")
    one.add("a", "x:2")
    other.add("a", "y:1")
    other.add("b", "y:2")
    one.take_in(other)
    assert one == Counter({"a": 3, "b": 1}) and one.first == {"a": ("x:1", "why"), "b": ("y:2", "")}


def test_a_histogram_holds_every_length_once() -> None:
    for seed in range(40):
        luck = np.random.default_rng(seed)
        lengths = luck.integers(1, int(luck.integers(2, 5000)), int(luck.integers(1, 300)))
        if seed % 2:
            lengths = np.append(lengths, 1_000_000)
        bins = histogram(lengths)
        assert len(bins) <= 16 and sum(count for _, _, count in bins) == len(lengths)
        for low, high, count in bins:
            assert count == sum(low <= length < high for length in lengths.tolist())
    assert histogram(np.zeros(0, np.int64)) == []


def test_quantiles_are_lengths_that_so_many_do_not_exceed() -> None:
    found = quantiles(np.arange(1, 101))
    assert found == {"shortest": 1, "median": 50, "90 %": 90, "99 %": 99, "longest": 100}


def test_words_for_people() -> None:
    assert blocks([(0, 1, 16), (1, 2, 0), (2, 3, 1)]) == "█ ▁"
    assert [share(x) for x in (0.0, 1e-6, 0.25, 0.9999, 1.0)] == [
        "0 %",
        "under 0.1 %",
        "25 %",
        "over 99.9 %",
        "100 %",
    ]
    turns = tuple(Message(role, "x") for role in ("system", "user", "assistant"))
    assert role_order(Record.chat(turns)) == "system, user, assistant"
    assert role_order(Record.ranking(turns[:2], ())) == "system, user -> answers"


@pytest.mark.slow
def test_languages_of_a_file_that_alternates(tmp_path: Path) -> None:
    """Only some lines of a long file have their script found out, and these must not be every second one."""
    said = ["春眠不觉晓，处处闻啼鸟。", "the quick brown fox jumps"]
    rows = [{"prompt": f"{said[i % 2]} {i}", "completion": said[i % 2]} for i in range(9000)]
    file = tmp_path / "both.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    done = CliRunner().invoke(app, ["inspect", str(file), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    languages = next(iter(found["parts"].values()))["languages"] if "parts" in found else found["languages"]
    assert languages["zh"] == pytest.approx(0.5, abs=0.05)
