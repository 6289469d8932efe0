"""What a run is made from: each content and each option that counts is named when it differs, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from espalier import config
from espalier.models import identity
from espalier.models.identity import file_identity, model_identity, tokenizer_identity
from espalier.runs.catalogue import CLASSES
from espalier.runs.checks import check_startable
from espalier.runs.provenance import RECORDS, MadeFrom, made_from

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def own(world: Path, tmp_path: Path, options: Make) -> Callable[..., dict[str, Any]]:
    """Options of a stage over inputs that a test may change."""
    for name in ("base", "judge"):
        shutil.copytree(world / name, tmp_path / name)
    shutil.copytree(world / "base", tmp_path / "words")
    for name in ("sft_train", "prompts", "prompts_dev", "pref_train"):
        shutil.copy(world / f"{name}.jsonl", tmp_path / f"{name}.jsonl")
    (tmp_path / "rule.py").write_text(
        "import beside\nfrom judge_of_mine.inner import one\ndef f(p, a, r): return beside.one\ndef g(p, a, r): return 0.0\n"
    )
    (tmp_path / "beside.py").write_text("one = 1.0\n")
    (tmp_path / "judge_of_mine").mkdir()
    (tmp_path / "judge_of_mine" / "inner.py").write_text("from . import deeper\none = 1.0\n")
    (tmp_path / "judge_of_mine" / "deeper.py").write_text("two = 2.0\n")
    (tmp_path / "ds.json").write_text(json.dumps({"train_micro_batch_size_per_gpu": 1}))
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "judge")}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")

    def make(stage: str = "grpo", **changes: Any) -> dict[str, Any]:
        made = {"model_name_or_path": str(tmp_path / "base"), "tokenizer": str(tmp_path / "words"),
                "dataset": [str(tmp_path / "prompts.jsonl")], "eval_dataset": [str(tmp_path / "prompts_dev.jsonl")],
                "reward_function": f"{tmp_path / 'rule.py'}:f", "adapter_name_or_path": [str(tmp_path / "adapter")],
                "finetuning_type": "lora"}  # fmt: skip
        return options(stage, **made) | changes

    return make


def of(chosen: dict[str, Any], processes: int = 1) -> MadeFrom:
    built = config.build(config.RawConfig(chosen), CLASSES[chosen["stage"]], all_classes=CLASSES)
    made = made_from(built, processes=processes, known=Path(chosen["output_dir"]) / "files.json")
    back = MadeFrom.from_json(json.loads(json.dumps(made.as_json())))
    assert back is not None and made.differences(back) == [] and made.fingerprint == back.fingerprint
    return made


def append(name: str, text: str = "\n") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes() + text.encode())

    return change


CONTENT: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "weights": (append("base/model.safetensors"), "model_name_or_path", "model.safetensors has changed"),
    "a tokenizer": (append("words/tokenizer.json", " "), "tokenizer", "tokenizer.json has changed"),
    "a record": (append("prompts.jsonl", '{"prompt": "x"}\n'), "dataset", "prompts.jsonl has changed"),
    "a held-out record": (append("prompts_dev.jsonl"), "eval_dataset", "prompts_dev.jsonl has changed"),
    "a reward function": (append("rule.py"), "reward_function", "rule.py has changed"),
    "what it imports": (append("beside.py"), "reward_function", "beside.py has changed"),
    "a package that it imports": (append("judge_of_mine/deeper.py"), "reward_function", "deeper.py has changed"),
    "an adapter": (append("adapter/adapter_model.safetensors"), "adapter_name_or_path", "adapter_model.safetensors"),
    "an adapter's base": (append("judge/config.json", " "), "adapter_name_or_path", "base/config.json has changed"),
    "a file more": (lambda f: (f / "base" / "added.json").write_text("x"), "model_name_or_path", "is new"),
}  # fmt: skip


@pytest.mark.parametrize("what", CONTENT)
def test_content_behind_the_same_path_is_named(what: str, own: Make, tmp_path: Path) -> None:
    before = of(own())
    change, key, said = CONTENT[what]
    change(tmp_path)
    now = of(own())
    (found,) = now.differences(before)
    assert found.key == key and said in found.text and not found.by_option
    assert now.fingerprint != before.fingerprint


def test_references_rewards_and_files_of_other_stages_count_too(own: Make, tmp_path: Path) -> None:
    pairs = {"dataset": [str(tmp_path / "pref_train.jsonl")], "eval_dataset": [], "adapter_name_or_path": []}
    for stage, key, value, changed in (
        ("dpo", "ref_model", str(tmp_path / "judge"), "judge/model.safetensors"),
        ("ppo", "reward_model", str(tmp_path / "judge"), "judge/model.safetensors"),
        ("ppo", "ptx_dataset", str(tmp_path / "sft_train.jsonl"), "sft_train.jsonl"),
        ("sft", "deepspeed", str(tmp_path / "ds.json"), "ds.json"),
        ("pretrain", "model_config", str(tmp_path / "base" / "config.json"), "base/config.json"),
    ):
        chosen = own(stage, **{**(pairs if stage == "dpo" else {}), key: value})
        for unknown in {"reward_function"} - ({"reward_function"} if stage in ("ppo", "grpo") else set()):
            chosen.pop(unknown)
        if stage == "ppo":
            chosen.pop("reward_function" if key == "reward_model" else "reward_model")
            chosen |= {"ptx_coef": 0.1} if key == "ptx_dataset" else {}
        if key == "model_config":
            chosen["model_name_or_path"] = None
        before = of(chosen)
        append(changed)(tmp_path)
        assert [d.key for d in of(chosen).differences(before) if key == d.key] == [key], key


FREE = {"eval_steps": 3, "samples": 2, "logging_steps": 7, "save_steps": 3, "save_total_limit": 9, "strategy": "single",
        "num_processes": 1, "report_to": ["tensorboard"], "tokenized_path": "elsewhere", "resume": False, "name": "other",
        "preprocessing_num_workers": 3, "gradient_checkpointing": True, "allow_pickle": True}  # fmt: skip


@pytest.mark.parametrize("key", FREE)
def test_keys_that_change_no_result_refuse_nothing(key: str, own: Make) -> None:
    before, now = of(own()), of(own(**{key: FREE[key]}))
    assert now.differences(before) == [] and now.fingerprint == before.fingerprint


def test_every_other_key_is_named_with_what_it_was_and_is(own: Make, tmp_path: Path) -> None:
    own = partial(own, finetuning_type="lora")
    before = of(own())
    other = {"learning_rate": 2e-3, "seed": 7, "cutoff_len": 99, "temperature": 0.5, "lora_rank": 3,
             "precision": "bf16", "max_steps": 9, "layout": "padded"}  # fmt: skip
    found = of(own(**other)).differences(before)
    assert {d.key for d in found} == set(other) and all(d.by_option for d in found)
    assert "learning_rate: 0.001 -> 0.002" in [d.text for d in found]
    (found_other,) = of(own(reward_function=f"{tmp_path / 'rule.py'}:g")).differences(before)
    assert found_other.key == "reward_function" and found_other.by_option
    (weighed,) = of(own(dataset=[{"path": str(tmp_path / "prompts.jsonl"), "weight": 2.0}])).differences(
        before
    )
    assert weighed.key == "dataset" and weighed.by_option
    (another,) = of(own(dataset=[str(tmp_path / "sft_train.jsonl")])).differences(before)
    assert another.key == "dataset" and another.by_option, (
        "another path with other content is the user's choice"
    )


def test_what_has_moved_is_the_same(own: Make, tmp_path: Path) -> None:
    before = of(own())
    for name in ("base", "prompts.jsonl", "rule.py", "beside.py", "judge_of_mine"):
        (tmp_path / "there").mkdir(exist_ok=True)
        shutil.move(tmp_path / name, tmp_path / "there" / name)
    moved = {"model_name_or_path": str(tmp_path / "there" / "base"),
             "dataset": [str(tmp_path / "there" / "prompts.jsonl")],
             "reward_function": f"{tmp_path / 'there' / 'rule.py'}:f"}  # fmt: skip
    now = of(own(**moved))
    assert now.differences(before) == [] and now.fingerprint == before.fingerprint


def test_how_a_step_is_divided_does_not_count_and_its_size_does(own: Make) -> None:
    before = of(own(per_device_train_batch_size=8))
    halves = own(per_device_train_batch_size=4)
    assert of(own(per_device_train_batch_size=4, gradient_accumulation_steps=2)).differences(before) == []
    assert of(halves, processes=2).differences(before) == []
    (found,) = of(halves).differences(before)
    assert found.key == RECORDS
    assert found.text.endswith("8 -> 4 (set gradient_accumulation_steps so that it is 8 again)")


def test_a_list_of_rewards_counts_by_what_changes_its_numbers(own: Make, tmp_path: Path) -> None:
    def made(*entries: Any) -> MadeFrom:
        return of({k: v for k, v in own(rewards=list(entries)).items() if k != "reward_function"})

    rule, judge = {"type": f"{tmp_path / 'rule.py'}:f"}, {"type": "model", "path": str(tmp_path / "judge")}
    served = {"type": "judge", "url": "http://a/v1", "model": "m"}
    before = made(rule, judge, served)
    same = made({**rule, "seconds": 5}, judge, {**served, "url": "http://b/v1", "retries": 1, "calls": 9})
    assert same.differences(before) == [] and same.fingerprint == before.fingerprint
    for entries in (
        ({**rule, "weight": 2}, judge, served),
        (rule, judge, {**served, "best": 5}),
        (rule, {**judge, "score_at": "turn"}, served),
        ({"type": f"{tmp_path / 'rule.py'}:g"}, judge, served),
        (judge, served),
    ):
        (found,) = made(*entries).differences(before)
        assert found.key == "rewards" and found.by_option, entries
    for name, said in (
        ("beside.py", "beside.py has changed"),
        ("judge/model.safetensors", "model.safetensors has"),
    ):
        before = made(rule, judge, served)
        append(name)(tmp_path)
        changed = {one.key: one for one in made(rule, judge, served).differences(before)}
        assert said in changed["rewards"].text and not changed["rewards"].by_option
    before = made(judge, {**judge, "path": str(tmp_path / "base")})
    append("judge/model.safetensors")(tmp_path)
    assert "rewards" in {
        one.key for one in made(judge, {**judge, "path": str(tmp_path / "base")}).differences(before)
    }
    before = made(rule, judge, served)
    for name in ("rule.py", "beside.py", "judge_of_mine"):
        (tmp_path / "there").mkdir(exist_ok=True)
        shutil.move(tmp_path / name, tmp_path / "there" / name)
    assert made({"type": f"{tmp_path / 'there' / 'rule.py'}:f"}, judge, served).differences(before) == []


def test_a_key_that_an_earlier_version_did_not_know_had_its_default(own: Make) -> None:
    now, later = of(own()), of(own(temperature=0.5))
    earlier = MadeFrom(
        {k: v for k, v in now.options.items() if k != "temperature"} | {"gone": 1}, now.contents
    )
    assert now.differences(earlier) == []
    assert [d.key for d in later.differences(earlier)] == ["temperature"]


def test_large_files_are_told_apart_by_size_time_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "LARGE", 100)
    monkeypatch.setattr(identity, "_END", 10)
    file = tmp_path / "w.safetensors"
    file.write_bytes(bytes(1000))
    os.utime(file, ns=(1, 1))
    said = file_identity(file)
    assert said == file_identity(file) and said.startswith("1000 bytes")
    for content, time in ((bytes(1001), 1), (b"x" + bytes(999), 1), (bytes(999) + b"x", 1), (bytes(1000), 2)):
        file.write_bytes(content)
        os.utime(file, ns=(time, time))
        assert file_identity(file) != said


def test_what_belongs_to_no_model_is_not_looked_at(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(world / "base", folder)
    model, words = model_identity(str(folder)), tokenizer_identity(str(folder))
    assert "model.safetensors" in model and "model.safetensors" not in words and "tokenizer.json" in words
    for name in ("README.md", "trainer_state.json", ".hidden.json", "notes.log"):
        (folder / name).write_text("x")
    (folder / "step-3").mkdir()
    assert model_identity(str(folder)) == model and tokenizer_identity(str(folder)) == words


def test_every_key_that_takes_a_path_says_what_it_names() -> None:
    """A new key that names a file must be compared by content; whoever adds one meets this."""
    items = [
        item for kinds in CLASSES.values() for kind in kinds for item in kind.__dataclass_fields__.values()
    ]
    words = ("path", "folder", "file", "hub id", "run:", "data set", "dataset's", "another model")
    paths = {item.name for item in items if any(word in str(item.metadata["help"]).lower() for word in words)}
    told = {item.name for item in items if "names" in item.metadata or item.metadata.get("same_result")}
    no_path = {
        "interleave_probs",
        "val_size",
        "lora_target",
        "skip_bad",
        "ptx_coef",
        "cutoff_len",
        "create_new_adapter",
    }
    assert paths - told <= no_path, paths - told - no_path
    assert {"model_name_or_path", "dataset", "reward_model", "reward_function"} <= paths & told


def test_what_is_missing_is_said_before_anything_is_touched(own: Make, tmp_path: Path) -> None:
    from espalier.errors import UserError

    for changes, said in (
        ({"model_name_or_path": str(tmp_path / "none")}, "there is no such folder"),
        ({"tokenizer": str(tmp_path / "none")}, "tokenizer: .* no such folder"),
        ({"dataset": [str(tmp_path / "none.jsonl")]}, "none.jsonl"),
        ({"reward_function": f"{tmp_path / 'none.py'}:f"}, "there is no file"),
        ({"deepspeed": str(tmp_path / "none.json")}, "deepspeed: there is no file"),
        ({"deepspeed": str(tmp_path / "prompts.jsonl")}, "not valid JSON"),
        ({"resume": str(tmp_path / "none")}, "`resume` is"),
    ):
        chosen = own(**changes)
        with pytest.raises(UserError, match=said):
            built = config.build(config.RawConfig(chosen), CLASSES["grpo"], all_classes=CLASSES)
            check_startable("grpo", built)
    for name in ("../../x", "a/b", "/x", ".."):
        with pytest.raises(UserError, match=r"`name` is .*folder in output_dir"):
            config.build(config.RawConfig(own(name=name)), CLASSES["grpo"], all_classes=CLASSES)
