"""Copies and near copies against brute force over sets of strings, on planted copies of real texts."""

from __future__ import annotations

import json
import random
import re
import tracemalloc
import unicodedata
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier.corpora.clean.duplicates import without_copies, without_near_copies, without_near_copies_of_dev
from espalier.corpora.clean.minhash import Signer, across, band_keys, bands_for, candidates
from espalier.corpora.clean.shingles import jaccard, shingles
from espalier.corpora.made import DEV, TRAIN, CorpusRecord, Division, Omission, Outcomes


def plain_shingles(text: str) -> set[str]:
    """The same definition again, as sets of strings."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
    han = sum("\u4e00" <= char <= "\u9fff" for char in text)
    if 4 * han >= sum(char.isalnum() for char in text):
        row: list[str] = list("".join(words))
        size = min(5, len(row))
    else:
        row, size = words, min(3, len(words))
    if not row:
        return set()
    return {"\0".join(row[at : at + size]) for at in range(len(row) - size + 1)}


def plain_jaccard(one: str, other: str) -> float:
    a, b = plain_shingles(one), plain_shingles(other)
    return len(a & b) / len(a | b)


def made(texts: list[str]) -> Outcomes:
    return iter(
        [CorpusRecord({"text": text}, text, f"a.jsonl:{number}") for number, text in enumerate(texts)]
    )


def edited(text: str, share: float, chance: random.Random) -> str:
    """The text with a share of its characters replaced."""
    letters = list(text)
    for place in chance.sample(range(len(letters)), round(share * len(letters))):
        letters[place] = chance.choice("的一是不了人我在有他abcdefg ")
    return "".join(letters)


@pytest.fixture(scope="module")
def texts(shared: Path) -> list[str]:
    """800 Chinese and English texts, half of them with a copy that was edited more or less."""
    chance = random.Random(5)
    found = []
    for name in ("alpaca_zh_demo", "alpaca_en_demo"):
        rows = json.loads((shared / f"data/llamafactory_demo/{name}.json").read_text("utf-8"))
        found += [row["output"] for row in rows if len(row["output"]) > 60][:200]
    found += [edited(text, chance.choice((0.0, 0.01, 0.02, 0.04, 0.08, 0.3)), chance) for text in found]
    chance.shuffle(found)
    return found


@pytest.mark.slow
def test_shingles_are_the_sets_that_they_say(texts: list[str]) -> None:
    short = ["", "?!", "春", "春眠", "a", "a b", "a b c d", "Ｈello，World！", "表A1", "日本語テキスト"]
    for one in [*short, *texts[:40]]:
        assert len(shingles(one)) == len(plain_shingles(one))
        for other in texts[40:60]:
            assert jaccard(shingles(one), shingles(other)) == pytest.approx(plain_jaccard(one, other))


def test_signatures_agree_as_often_as_the_texts_do(texts: list[str]) -> None:
    signer = Signer(2048)
    for one, other in [
        (texts[i], edited(texts[i], share, random.Random(i))) for i, share in enumerate((0.0, 0.01, 0.03))
    ]:
        agree = float((signer.sign(shingles(one)) == signer.sign(shingles(other))).mean())
        assert agree == pytest.approx(plain_jaccard(one, other), abs=0.05)


def test_bands_find_what_they_must() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9, 0.95):
        bands, rows = bands_for(threshold)
        assert bands * rows <= 128 and 1 - (1 - threshold**rows) ** bands >= 0.99


@pytest.mark.slow
def test_near_copies_against_brute_force(texts: list[str]) -> None:
    threshold = 0.7
    shared = [plain_shingles(text) for text in texts]
    alike = {
        (i, j)
        for i, j in combinations(range(len(texts)), 2)
        if len(shared[i] & shared[j]) >= threshold * len(shared[i] | shared[j])
    }
    gone: set[int] = set()  # greedily, the first stays
    for later in range(len(texts)):
        if any((earlier, later) in alike and earlier not in gone for earlier in range(later)):
            gone.add(later)
    account: dict[str, Any] = {}
    found = list(without_near_copies(made(texts), threshold, account))
    removed = {int(thing.source.split(":")[1]) for thing in found if isinstance(thing, Omission)}
    assert len(gone) > 100
    assert removed <= gone, "precision is 1: every candidate is compared exactly"
    assert len(removed) >= 0.99 * len(gone)
    assert account["removed"] == len(removed) and account["compared"] < len(texts) * 3
    for example in account["examples"]:
        one, other = (texts[int(example[key].split(":")[1])] for key in ("source", "near_copy_of"))
        assert example["similarity"] == pytest.approx(plain_jaccard(one, other), abs=1e-3) and one != ""
    stay = [int(thing.source.split(":")[1]) for thing in found if isinstance(thing, CorpusRecord)]
    assert stay == sorted(set(range(len(texts))) - removed)


@pytest.mark.slow
def test_train_has_no_near_copy_of_dev(texts: list[str]) -> None:
    division, threshold = Division(seed=2, dev=0.2), 0.7
    account: dict[str, Any] = {}
    found = list(without_near_copies_of_dev(made(texts), threshold, division, account))
    parts: dict[str, list[set[str]]] = {TRAIN: [], DEV: []}
    for thing in found:
        if isinstance(thing, CorpusRecord):
            parts[division.part(thing.key)].append(plain_shingles(thing.row["text"]))
    alike = [
        (one, other)
        for one in parts[TRAIN]
        for other in parts[DEV]
        if len(one & other) >= threshold * len(one | other)
    ]
    assert len(alike) <= 1 and account["removed"] > 20
    gone = [texts[int(thing.source.split(":")[1])] for thing in found if isinstance(thing, Omission)]
    assert len(gone) == account["removed"] and all(division.part(text) == TRAIN for text in gone)
    held = [text for text in texts if division.part(text) == DEV]
    assert all(any(plain_jaccard(text, other) >= threshold for other in held) for text in gone)


def test_copies_differ_in_nothing_that_counts() -> None:
    rows = ["春眠不觉晓。", "处处闻啼鸟", " 春眠 不觉晓", "Ｈello World", "hello, world!", "hello word"]
    account: dict[str, Any] = {}
    found = list(without_copies(made(rows), account))
    assert [thing.source for thing in found if isinstance(thing, Omission)] == ["a.jsonl:2", "a.jsonl:4"]
    assert [example["copy_of"] for example in account["examples"]] == ["a.jsonl:0", "a.jsonl:3"]


def test_rankings_are_copies_by_prompt_and_best_answer() -> None:
    def row(wrong: str) -> dict[str, Any]:
        return {
            "prompt": "上联",
            "prefix": "",
            "answers": [{"answer": "下联", "score": 1}, {"answer": wrong, "score": 0}],
        }

    found = without_copies(iter([CorpusRecord(row(x), "上联", f"a:{x}") for x in ("甲", "乙")]), {})
    assert [type(thing) for thing in found] == [CorpusRecord, Omission]


def test_a_bucket_of_many_is_no_square() -> None:
    """A thousand texts with one signature: each meets a few, not all."""
    signatures = np.zeros((1000, 12), np.uint32)
    pairs = candidates(band_keys(signatures, 2, 6))
    assert len(pairs) <= 8 * 1000 and (pairs[:, 0] > pairs[:, 1]).all()
    assert set(pairs[:, 0].tolist()) == set(range(1, 1000)) and set(pairs[4:, 1].tolist()) >= {
        0,
        1,
        2,
        3,
        998,
    }


def test_candidates_against_all_pairs() -> None:
    draw = np.random.default_rng(0)
    signatures = draw.integers(0, 3, (60, 12), dtype=np.uint32)
    signatures[40:] = signatures[:20]
    signatures[40:, :3] += 5

    def agree(one: int, other: int) -> bool:
        return any(
            (signatures[one, b * 3 : b * 3 + 3] == signatures[other, b * 3 : b * 3 + 3]).all()
            for b in range(4)
        )

    wanted = [[later, earlier] for later in range(60) for earlier in range(later) if agree(later, earlier)]
    assert candidates(band_keys(signatures, 4, 3)).tolist() == wanted and len(wanted) > 20
    found = across(band_keys(signatures, 4, 3), np.arange(20)).tolist()
    assert found == [[many, few] for many in range(60) for few in range(20) if agree(few, many)]
    assert across(band_keys(signatures, 4, 3), np.zeros(0, np.int64)).tolist() == []
    assert candidates(iter(())).tolist() == []


@pytest.mark.slow
def test_memory_is_a_few_bytes_a_record() -> None:
    peaks = []
    for number in (300, 1800):
        chance = random.Random(number)
        stream = (
            CorpusRecord({"text": text}, text, f"a:{i}")
            for i in range(number)
            for text in ["".join(chance.choices("天地玄黄宇宙洪荒日月盈昃辰宿列张", k=150))]
        )
        tracemalloc.start()
        assert (
            sum(isinstance(thing, CorpusRecord) for thing in without_near_copies(stream, 0.8, {})) == number
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1500 * 200
