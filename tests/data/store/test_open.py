"""A store gives the very trees that encoding gives; anything it depends on makes another one; faults are told."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from espalier.data.encode.tokenise import encode_all
from espalier.data.encode.too_long import TooLongError
from espalier.data.read.specs import parse_specs
from espalier.data.store import build as building
from espalier.data.store.again import all_records, examples, records_at
from espalier.data.store.build import build
from espalier.data.store.columns import ColumnWriter, Store
from espalier.data.store.job import Job
from espalier.data.store.open import ReadSettings, opened
from espalier.data.store.reading import blocks_of
from espalier.data.store.stack import Choice, Stack, stored
from espalier.errors import UserError
from tests.data.listed import encode_prompts, load_records
from tests.data.store.helpers import CHATS, PAIRS, RANKS, ROWS, job, said, tokenizer_of, write


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizer_of()


def stack_of(path: Any, wanted: Job, folder: Path, **options: Any) -> tuple[Stack, Choice, Any]:
    specs = parse_specs(path)
    stack, order, loaded = opened(specs, wanted, ReadSettings(folder, **options))
    return stack, Choice(stack, order), loaded


@pytest.mark.parametrize("kind", ["chat", "preference", "ranking", "text", "unpaired"])
@pytest.mark.parametrize("overlong", ["trim", "drop"])
def test_stored_trees_are_the_encoded_ones_token_for_token(
    kind: str, overlong: str, tokenizer: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[kind])
    wanted = job(kind, tokenizer, cutoff_len=24, overlong=overlong)
    for _ in ("made", "found again"):
        _, choice, loaded = stack_of(path, wanted, tmp_path / "kept")
        forest = stored(choice)
        listed = load_records(parse_specs(path), kind)
        trees, _ = encode_all(listed.records, wanted.encoder)  # type: ignore[arg-type]
        assert [said(tree) for tree in forest] == [said(tree) for tree in trees]
        assert forest.sizes(paths=False).tolist() == [tree.n_tokens for tree in trees]
        assert forest.sizes(paths=True).tolist() == [tree.n_path_tokens for tree in trees]
        assert (loaded.counts, loaded.left_out, loaded.hashes) == (
            listed.counts,
            listed.left_out,
            listed.hashes,
        )
        assert loaded.formats == listed.formats


def test_stored_prompts_are_the_encoded_ones(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*ROWS["prompt"], {"prompt": "很长的问题" * 40}])
    wanted = job("prompt", tokenizer, overlong="drop")
    stack, choice, _ = stack_of(path, wanted, tmp_path / "kept")
    assert wanted.encoder is not None and wanted.max_prompt_length is not None
    records = load_records(parse_specs(path), "prompt").records
    prompts, _ = encode_prompts(records, wanted.encoder, max_prompt_length=wanted.max_prompt_length)
    assert stack.trees == len(prompts) == len(choice) - 1
    for number, prompt in enumerate(prompts):
        assert stack.tokens(number) == prompt.tokens
        turns = [message.as_turn() for message in prompt.record.messages]
        wanted = [
            turns[-1]["content"],
            prompt.record.reference,
            turns,
            prompt.record.columns,
            prompt.record.prefix,
        ]
        assert stack.note(number) == wanted
        assert stack.source_of_tree(number) == prompt.record.source


@pytest.mark.slow
def test_real_files_of_all_kinds(shared: Path, aquila: Any, tmp_path: Path) -> None:
    """The first 150 records of each."""
    for name, kind in (
        ("sharegpt_zh/sharegpt_zh_1K_format.jsonl", "chat"),
        ("comparison_gpt4_zh/comparison_gpt4_data_zh.json", "preference"),
        ("llamafactory_demo/kto_en_demo.json", "unpaired"),
    ):
        text = (shared / "data" / name).read_text("utf-8")
        path = str(tmp_path / Path(name).name)
        if path.endswith(".jsonl"):
            text = "".join(text.splitlines(keepends=True)[:150])
        else:
            text = json.dumps(json.loads(text)[:150], ensure_ascii=False)
        Path(path).write_text(text, "utf-8")
        wanted = job(kind, aquila, cutoff_len=128)
        _, choice, _ = stack_of(path, wanted, tmp_path, skip_bad=True)
        records = load_records(parse_specs(path), kind, skip_bad=True).records
        trees, _ = encode_all(records, wanted.encoder)  # type: ignore[arg-type]
        assert [said(tree) for tree in stored(choice)] == [said(tree) for tree in trees]


@pytest.mark.parametrize("mix", ["concat", "first", "all"])
def test_mixing_chooses_the_same_records(mix: str, tokenizer: Any, tmp_path: Path) -> None:
    specs: list[Any] = [
        {"path": write(tmp_path / "a.jsonl", CHATS), "weight": 0.5},
        {"path": write(tmp_path / "b.jsonl", CHATS[:7]), "weight": 2.5},
        {"path": write(tmp_path / "c.jsonl", CHATS[5:40]), "samples": 9},
    ]
    wanted = job("chat", tokenizer, cutoff_len=512)
    listed = load_records(parse_specs(specs), "chat", mix=mix, seed=3)
    _, choice, loaded = stack_of(specs, wanted, tmp_path / "kept", mix=mix, seed=3)
    assert [tree.source for tree in stored(choice)] == [record.source for record in listed.records]
    assert (loaded.counts, loaded.left_out) == (listed.counts, listed.left_out)
    again = sorted(
        record.source
        for record in all_records(parse_specs(specs), Job("chat"), ReadSettings(tmp_path), choice)
    )
    assert again == sorted(record.source for record in listed.records)


@pytest.mark.slow
def test_samples_and_shares_are_counted_as_before(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", CHATS * 20)  # more than one block
    for options in (
        {"max_samples": 700},
        {"data_split": (2, 4, 4)},
        {"data_split": (1, 1, 0), "max_samples": 9},
    ):
        listed = load_records(parse_specs(path), "chat", **options)  # type: ignore[arg-type]
        _, choice, loaded = stack_of(
            path, job("chat", tokenizer, cutoff_len=512), tmp_path / "kept", **options
        )
        assert [tree.source for tree in stored(choice)] == [record.source for record in listed.records]
        assert loaded.left_out == listed.left_out


def test_records_are_found_again_by_their_place(tokenizer: Any, tmp_path: Path) -> None:
    rows = [*CHATS[:20], {"instruction": "问", "output": "长" * 90}, *CHATS[20:]]
    (tmp_path / "array.json").write_text(json.dumps(CHATS[:30]), "utf-8")
    (tmp_path / "brray.json").write_text(json.dumps(CHATS[30:]), "utf-8")
    specs = [write(tmp_path / "a.jsonl", rows), str(tmp_path / "?rray.json")]
    wanted = job("chat", tokenizer)
    reading = ReadSettings(tmp_path / "kept")
    _, choice, _ = stack_of(specs, wanted, tmp_path / "kept")
    records = load_records(parse_specs(specs), "chat").records
    places = [80, 3, 61, 0, 91, 120]
    assert records_at(parse_specs(specs), wanted, reading, choice, places) == [records[at] for at in places]
    from espalier.data.preflight.look import look

    account = look("train", choice, lambda tree: "")[2]
    assert account.first["trimmed: end of the answer, its end token too"][0] == f"{specs[0]}:21"
    found = examples(parse_specs(specs), wanted, reading, choice, account, 2)
    assert found[:2] == records[:2] and records[20] in found[2:]


# --- what a store depends on ------------------------------------------------------------------------------------


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir()}


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "the data": lambda it: write(Path(it["path"]), [*CHATS[:-1], {"instruction": "新", "output": "旧"}]),
    "one letter of the data": lambda it: Path(it["path"]).write_bytes(
        Path(it["path"]).read_bytes().replace("59个".encode(), "58个".encode())
    ),
    "the tokenizer": lambda it: it.update(tokenizer=tokenizer_of(390)),
    "an added token": lambda it: it["tokenizer"].add_tokens(["问题是"]),
    "the chat template": lambda it: setattr(
        it["tokenizer"], "chat_template", it["tokenizer"].chat_template.replace("\n", "\n\n")
    ),
    "the template": lambda it: it["encoder"].update(template="simple"),
    "another named template": lambda it: it["encoder"].update(template="vicuna"),
    "cutoff_len": lambda it: it["encoder"].update(cutoff_len=63),
    "overlong": lambda it: it["encoder"].update(overlong="drop"),
    "answers_trained": lambda it: it["encoder"].update(answers_trained=False),
    "score_at": lambda it: it["encoder"].update(score_at="answer"),
    "columns": lambda it: it["spec"].update(columns={"instruction": "output", "output": "instruction"}),
    "format": lambda it: it["spec"].update(format="alpaca"),
    "max_samples": lambda it: it["reading"].update(max_samples=50),
    "data_split": lambda it: it["reading"].update(data_split=(1, 1, 1)),
    "the kind": lambda it: it.update(kind="prompt"),
    "the code": lambda it: it["patch"].setattr("espalier.data.store.key._code", lambda: "other"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_any_change_makes_another_store_and_none_finds_the_old_one(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it: dict[str, Any] = {
        "path": write(tmp_path / "a.jsonl", CHATS),
        "tokenizer": tokenizer_of(),
        "kind": "chat",
        "encoder": {"cutoff_len": 512},
        "spec": {},
        "reading": {},
        "patch": monkeypatch,
    }

    def open_it() -> None:
        wanted = job(it["kind"], it["tokenizer"], **it["encoder"])
        stack_of({"path": it["path"], **it["spec"]}, wanted, tmp_path / "kept", **it["reading"])

    open_it()
    before = names(tmp_path / "kept")
    made = []
    monkeypatch.setattr(
        "espalier.data.store.open.build", lambda *a, **k: made.append(1) or building.build(*a, **k)
    )
    open_it()
    assert names(tmp_path / "kept") == before and not made, "nothing changed, so it is found again"
    CHANGES[what](it)
    open_it()
    assert len(names(tmp_path / "kept") - before) == 1 and made, what


def test_seeds_weights_and_mixing_change_the_choice_and_no_token(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", CHATS)
    wanted = job("chat", tokenizer, cutoff_len=512)
    stack_of(path, wanted, tmp_path / "kept")
    before = names(tmp_path / "kept")
    stack_of({"path": path, "weight": 0.5}, wanted, tmp_path / "kept", seed=9, mix="concat")
    assert names(tmp_path / "kept") == before


def test_a_large_file_is_hashed_again_only_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from espalier.data.store import key

    monkeypatch.setattr(key, "_LARGE", 10)
    monkeypatch.setattr(key, "_SETTLED", 0.0)
    path = Path(write(tmp_path / "a.jsonl", CHATS))
    [spec] = parse_specs(str(path))
    known = tmp_path / "files.json"
    first = key.content(spec, known)
    held = json.loads(known.read_text("utf-8"))
    next(iter(held.values()))["sha256"] = "remembered"
    known.write_text(json.dumps(held), "utf-8")
    assert key.content(spec, known) == {str(path): "remembered"}
    times = path.stat()
    time.sleep(0.05)
    path.write_bytes(path.read_bytes().replace("59个".encode(), "58个".encode()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # of the same size and "unchanged"
    changed = key.content(spec, known)
    assert changed[str(path)] not in ("remembered", first[str(path)])


# --- faults -----------------------------------------------------------------------------------------------------


def test_bad_records_of_all_sources_are_told_at_once_and_nothing_is_kept(
    tokenizer: Any, tmp_path: Path
) -> None:
    bad = {"instruction": "问", "output": ""}
    paths = [write(tmp_path / f"{name}.jsonl", [*CHATS[:5], bad, bad, *CHATS[5:9]]) for name in "ab"]
    wanted = job("chat", tokenizer, cutoff_len=512)
    with pytest.raises(UserError) as told:
        stack_of(paths, wanted, tmp_path / "kept")
    with pytest.raises(UserError) as before:
        load_records(parse_specs(paths), "chat")
    assert str(told.value) == str(before.value) and "4 bad records (4 empty text), 18 good" in str(told.value)
    assert not names(tmp_path / "kept")
    rejected = tmp_path / "run" / "rejected.jsonl"
    for _ in range(2):  # the second time from what is kept
        _, choice, loaded = stack_of(paths, wanted, tmp_path / "kept", skip_bad=True, rejected_path=rejected)
        assert len(choice) == 18 and loaded.left_out == {"bad record: empty text": 4}
        lines = [json.loads(line) for line in rejected.read_text("utf-8").splitlines()]
        assert [line["source"] for line in lines] == [f"{path}:{n}" for path in paths for n in (6, 7)]
        assert lines[0]["row"] == bad
        rejected.unlink()
    with pytest.raises(UserError, match="4 bad records"):
        stack_of(paths, wanted, tmp_path / "kept")


@pytest.mark.parametrize("kind", ["chat", "prompt", "preference"])
def test_a_record_that_the_template_refuses_is_a_bad_one(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if 'odd' in m['content'] %}{{ raise_exception('no odd turns') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    picky = copy.deepcopy(tokenizer)
    picky.chat_template = template
    rows = ROWS[kind][:9]
    odd = {**rows[0], ("instruction" if kind == "chat" else "prompt"): "an odd one"}
    path = write(tmp_path / "a.jsonl", [*rows[:5], odd, *rows[5:], odd])
    wanted = job(kind, picky, cutoff_len=512, template="tokenizer")
    with pytest.raises(UserError, match=r"2 bad records \(2 refused by the template\), 9 good") as told:
        stack_of(path, wanted, tmp_path / "kept")
    assert f"{path}:6: " in str(told.value) and "no odd turns" in str(told.value)
    for kept in ("kept", "kept", "other"):
        most = 9 if kept == "other" else None
        rejected = tmp_path / "rejected.jsonl"
        stack, choice, loaded = stack_of(
            path, wanted, tmp_path / kept, skip_bad=True, rejected_path=rejected, max_samples=most
        )
        assert (len(choice), loaded.left_out["bad record: refused by the template"]) == (9, 2)
        assert [json.loads(line)["source"] for line in rejected.read_text("utf-8").splitlines()] == [
            f"{path}:6",
            f"{path}:11",
        ]
        specs, reading = parse_specs(path), ReadSettings(tmp_path / kept, skip_bad=True)
        sources = [f"{path}:{line}" for line in (1, 2, 3, 4, 5, 7, 8, 9, 10)]
        assert [record.source for record in all_records(specs, wanted, reading, choice)] == sources
        assert [r.source for r in records_at(specs, wanted, reading, choice, [8, 5])] == [
            sources[8],
            sources[5],
        ]
        assert [stack.source(number) for number in range(9)] == sources


def test_too_long_is_told_at_once_but_not_behind_the_last_that_is_wanted(
    tokenizer: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [*CHATS[:20], {"instruction": "问", "output": "长" * 900}])
    wanted = job("chat", tokenizer, cutoff_len=512, overlong="error")
    with pytest.raises(UserError, match=r"a\.jsonl:21: .* cutoff_len is 512"):
        stack_of(path, wanted, tmp_path / "kept")
    _, choice, _ = stack_of(path, wanted, tmp_path / "kept", max_samples=20)
    assert len(choice) == 20


@pytest.mark.parametrize("kind", ["chat", "prompt"])
def test_all_that_is_too_long_is_counted_in_one_message(tokenizer: Any, tmp_path: Path, kind: str) -> None:
    long = [{"instruction": "问" * length, "output": "答"} for length in (500, 900, 600)]
    paths = [write(tmp_path / f"{n}.jsonl", [*CHATS[:20], row, *CHATS[:20]]) for n, row in enumerate(long)]
    paths.append(write(tmp_path / "short.jsonl", CHATS[:20]))
    key = "cutoff_len" if kind == "chat" else "max_prompt_length"
    with pytest.raises(TooLongError) as caught:
        stack_of(paths, job(kind, tokenizer, cutoff_len=200, overlong="error"), tmp_path / "kept")
    found = caught.value.found
    whole = stack_of(paths, job(kind, tokenizer, cutoff_len=8000), tmp_path / "kept")[1]
    sizes = {tree.source: tree.n_tokens for tree in stored(whole) if tree.n_tokens > found.limit}
    first, longest = f"{paths[0]}:21", f"{paths[1]}:21"
    assert (found.key, found.count, len(sizes)) == (key, 3, 3) and caught.value.records == 143
    assert (found.first, found.longest) == ((first, sizes[first]), (longest, sizes[longest]))
    said = str(caught.value)
    for words in ("the first of 3 such records among 143", f"the longest is {longest} with {sizes[longest]:,}",
                  "`overlong: drop`", "`overlong: trim`"):  # fmt: skip
        assert words in said


def test_a_damaged_store_is_made_again(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", CHATS)
    wanted = job("chat", tokenizer, cutoff_len=512)
    _, choice, _ = stack_of(path, wanted, tmp_path / "kept")
    whole = [said(tree) for tree in stored(choice)]
    [name] = names(tmp_path / "kept")
    for file in ("tokens.bin", "manifest.json"):
        damaged = tmp_path / "kept" / name / file
        damaged.write_bytes(damaged.read_bytes()[:-5])
        _, choice, _ = stack_of(path, wanted, tmp_path / "kept")
        assert [said(tree) for tree in stored(choice)] == whole


@pytest.mark.parametrize(
    "harm",
    {
        "a bit of the tokens": lambda kept: _flipped(kept / "tokens.bin"),
        "a bit of where they begin": lambda kept: _flipped(kept / "tokens.start.bin"),
        "a bit of the lines": lambda kept: _flipped(kept / "line.bin"),
        "a number in the manifest": lambda kept: (kept / "manifest.json").write_text(
            (kept / "manifest.json").read_text("utf-8").replace('"records": 60', '"records": 59'), "utf-8"
        ),
        "another format": lambda kept: (kept / "manifest.json").write_text('{"depends_on": {}}', "utf-8"),
        "a list for a manifest": lambda kept: (kept / "manifest.json").write_text("[]", "utf-8"),
        "bytes for a manifest": lambda kept: (kept / "manifest.json").write_bytes(b"\xff\xfe"),
        "no rejected.jsonl": lambda kept: (kept / "rejected.jsonl").unlink(),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_damage_is_said_and_the_store_made_again(harm: Any, tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", CHATS)
    wanted = job("chat", tokenizer, cutoff_len=512)
    told: list[str] = []
    _, choice, _ = stack_of(path, wanted, tmp_path / "kept", show=told.append)
    whole = [said(tree) for tree in stored(choice)]
    [name] = names(tmp_path / "kept")
    stack_of(path, wanted, tmp_path / "kept", show=told.append)
    assert not told, "a sound one is used without a word"
    harm[1](tmp_path / "kept" / name)
    _, choice, _ = stack_of(path, wanted, tmp_path / "kept", show=told.append)
    assert [said(tree) for tree in stored(choice)] == whole
    assert len(told) == 1 and "this tokenised data is damaged (" in told[0] and "is made again" in told[0]
    assert names(tmp_path / "kept") == {name}


def _flipped(file: Path) -> None:
    """One bit, and a time of writing as before: nothing but its content can tell."""
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_store_is_read_through_once_a_process(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from espalier.data.store import cache

    path = write(tmp_path / "a.jsonl", CHATS)
    wanted = job("chat", tokenizer, cutoff_len=512)
    stack_of(path, wanted, tmp_path / "kept")
    read: list[Path] = []
    real = cache.sum_of_file
    monkeypatch.setattr(cache, "sum_of_file", lambda file: read.append(file) or real(file))
    stack_of(path, wanted, tmp_path / "kept")
    stack_of(path, wanted, tmp_path / "kept")
    assert not read


def test_a_failed_writing_leaves_nothing(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", CHATS)
    wanted = job("chat", tokenizer, cutoff_len=512)

    def full(self: ColumnWriter, name: str, values: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ColumnWriter, "add", full)
        with pytest.raises(UserError, match="tokenized_path"):
            stack_of(path, wanted, tmp_path / "kept")
    assert not names(tmp_path / "kept")
    stack_of(path, wanted, tmp_path / "kept")


@pytest.mark.slow
def test_one_process_and_two_write_the_same_bytes(tokenizer: Any, tmp_path: Path) -> None:
    rows: list[Any] = [*CHATS * 30, {"instruction": "问", "output": ""}, *CHATS]
    [spec] = parse_specs(write(tmp_path / "a.jsonl", rows))
    wanted = job("chat", tokenizer, cutoff_len=20)
    manifests = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        manifests.append(build(folder, wanted, blocks_of(spec), name="a", workers=workers, max_samples=1700))
    assert manifests[0] == manifests[1] and manifests[0]["records"] == 1700
    for file in sorted((tmp_path / "0").iterdir()):
        assert file.read_bytes() == (tmp_path / "2" / file.name).read_bytes(), file.name


@pytest.mark.slow
def test_a_fault_in_a_worker_is_told(tokenizer: Any, tmp_path: Path) -> None:
    [spec] = parse_specs(
        write(tmp_path / "a.jsonl", [*CHATS * 10, {"instruction": "长" * 900, "output": "答"}])
    )
    wanted = job("chat", tokenizer, cutoff_len=300, overlong="error")
    with pytest.raises(UserError, match=r"a\.jsonl:601: .* cutoff_len"):
        build(tmp_path, wanted, blocks_of(spec), name="a", workers=2)


def test_pairs_and_rankings_share_a_store(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*PAIRS, *RANKS])
    stack, choice, _ = stack_of(path, job("preference", tokenizer), tmp_path / "kept")
    [numbers] = choice.chunks()
    assert stack.of_records("answers", numbers).tolist() == [2] * len(PAIRS) + [3] * len(RANKS)
    forest = stored(choice)
    assert not forest[0].extras and forest[len(PAIRS)].extras["scores"].tolist() == [3.0, 2.0, 1.0]
    assert isinstance(stack.stores[0], Store) and replace(choice, picks=None) == choice
