"""YAML in, checked options out: what is accepted, what is refused with which remedy, and the way back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from espalier.config import (
    IGNORED,
    SYNONYMS,
    OptionSet,
    build,
    canonical,
    describe,
    dump_yaml,
    load_yaml,
    options_hash,
    split_pipeline,
    stage_of,
)
from espalier.config.names import SPREAD, STAGE_SYNONYMS, STAND_INS, SWITCHES, VALUES
from espalier.config.options import (
    COMMON,
    DataOptions,
    EngineOptions,
    LoraOptions,
    ModelOptions,
    OptimizerOptions,
    Options,
    RunOptions,
    TokenizedOptions,
    TrackOptions,
    TrainOptions,
    option,
)
from espalier.config.refused import REFUSED
from espalier.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PPO(Options):
    """Options of one stage."""

    ppo_epochs: int = option(4, "Passes.", min=1)
    kl_coef: float = option(0.1, "The KL's weight.", min=0)


@dataclass(frozen=True, kw_only=True)
class DPO(Options):
    """Options of another."""

    pref_beta: float = option(0.1, "Beta.", above=0)


ALL: Mapping[str, Sequence[type]] = {"sft": COMMON, "ppo": (*COMMON, PPO), "dpo": (*COMMON, DPO)}
GOOD = {"stage": "sft", "model_name_or_path": "m", "dataset": "d.jsonl"}

LLAMA_FACTORY = """\
### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true
### method
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
pref_beta: 0.1
### dataset
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
### output
output_dir: saves/llama3-8b/lora/dpo
logging_steps: 10
plot_loss: true
overwrite_output_dir: true
report_to: none
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
max_steps: -1
lr_scheduler_type: cosine
optim: adamw_torch
bf16: true
fp16: false
ddp_timeout: 180000000
resume_from_checkpoint: null
"""


def made(raw: Mapping[str, Any], stage: str = "sft") -> OptionSet:
    return build({**GOOD, "stage": stage, **raw}, ALL[stage], all_classes=ALL)


def written(folder: Path, text: str | bytes, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(raw: Mapping[str, Any], stage: str = "sft") -> str:
    with pytest.raises(UserError) as error:
        made(raw, stage)
    return str(error.value)


# --- reading a file ---------------------------------------------------------------------------------------------


def test_a_file_with_a_byte_order_mark_and_overrides(tmp_path: Path) -> None:
    path = written(
        tmp_path, b"\xef\xbb\xbf" + b"stage: sft\nmax_length: 512\nmodel_config: {hidden_size: 8}\n"
    )
    raw = load_yaml(
        path, ["cutoff_len=64", "model_config.rms_norm_eps=1e-6", "--seed=7", "lora_target=[a, b]"]
    )
    assert raw == {
        "stage": "sft",
        "model_config": {"hidden_size": 8, "rms_norm_eps": 1e-6},
        "cutoff_len": 64,
        "seed": 7,
        "lora_target": ["a", "b"],
    }
    assert raw.places["stage"] == f"{path}:1" and raw.places["seed"] == "the command line"


def test_an_exponent_without_a_dot_is_a_number(tmp_path: Path) -> None:
    assert load_yaml(written(tmp_path, "a: 1e-5\nb: 5E3\nc: 1e\nd: 2024-01\n")) == {
        "a": 1e-5,
        "b": 5000.0,
        "c": "1e",
        "d": "2024-01",
    }


def test_an_override_replaces_the_other_name_of_its_option(tmp_path: Path) -> None:
    raw = load_yaml(written(tmp_path, "bf16: true\nstage: sft\n"), ["precision=fp32"])
    assert canonical(raw)[0] == {"stage": "sft", "precision": "fp32"}


def test_an_override_reaches_one_stage(tmp_path: Path) -> None:
    text = "seed: 1\nstages:\n- {name: a, stage: sft}\n- {name: b, stage: sft, lr: 1}\n"
    raw = load_yaml(written(tmp_path, text), ["b.learning_rate=2", "seed=3"])
    assert raw["stages"] == [{"name": "a", "stage": "sft"}, {"name": "b", "stage": "sft", "learning_rate": 2}]
    assert raw["seed"] == 3


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", r"run\.yaml:3:2: not valid YAML"),
        ("a:\n\t- 1\n", r"run\.yaml:2:1: not valid YAML.*never tabs"),
        ("a: 1\nb: 2\na: 3\n", r"run\.yaml:3: `a` stands a second time \(first in line 1\)"),
        ("- 1\n- 2\n", "holds a list; wanted `key: value`"),
        ("", "is empty; wanted `key: value`"),
        ("just words", "wanted `key: value`"),
        ("? [a]\n: 1\n", "a key must be a plain word"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
        (b"a: \xff\xfe\n", "Save the file as UTF-8"),
    ],
)
def test_a_broken_file_is_named_with_its_place(tmp_path: Path, text: str | bytes, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        load_yaml(written(tmp_path, text))


def test_a_missing_file_names_the_near_ones(tmp_path: Path) -> None:
    written(tmp_path, "a: 1", "sft_zh.yaml")
    with pytest.raises(UserError, match=r"no such file. Near it: .*sft_zh\.yaml"):
        load_yaml(tmp_path / "sft_hz.yaml")
    with pytest.raises(UserError, match="no folder"):
        load_yaml(tmp_path / "nowhere" / "a.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_yaml(tmp_path)


@pytest.mark.parametrize("word", ["seed", "=3", ""])
def test_a_word_that_is_no_override(tmp_path: Path, word: str) -> None:
    with pytest.raises(UserError, match="wanted key=value"):
        load_yaml(written(tmp_path, "a: 1"), [word])
    with pytest.raises(UserError, match="neither a stage's name nor a mapping"):
        load_yaml(written(tmp_path, "a: 1"), ["a.b=1"])
    with pytest.raises(UserError, match=r"command line \(a\):1"):
        load_yaml(written(tmp_path, "a: 1"), ["a=[1"])


# --- building ---------------------------------------------------------------------------------------------------


def test_what_yaml_misreads_is_understood() -> None:
    built = made(
        {
            "learning_rate": "1e-5",
            "num_train_epochs": 2,
            "seed": 3.0,
            "lora_target": "a, b",
            "report_to": "wandb",
        }
    )
    assert built[TrainOptions].learning_rate == 1e-5
    assert built[TrainOptions].num_train_epochs == 2.0 and isinstance(
        built[TrainOptions].num_train_epochs, float
    )
    assert built[RunOptions].seed == 3 and isinstance(built[RunOptions].seed, int)
    assert built[LoraOptions].lora_target == ["a", "b"]
    assert built[TrackOptions].report_to == ["wandb"]
    assert built[DataOptions].dataset == ["d.jsonl"]


def test_null_means_not_written_unless_null_is_a_value() -> None:
    built = made({"seed": None, "save_total_limit": None})
    assert built[RunOptions].seed == 42 and built[RunOptions].save_total_limit is None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"lerning_rate": 1}, "`lerning_rate` is not an option of sft. Did you mean `learning_rate`?"),
        ({"max_seq_lenght": 1}, "Did you mean `cutoff_len`?"),
        ({"Weight-Decay": 1}, "Did you mean `weight_decay`?"),
        ({"zzzzzz": 1}, "No option has a similar name"),
        ({"ppo_epochs": 1}, "`ppo_epochs` is an option of ppo, not of sft. Remove it here."),
        ({"stages": []}, "start it with `espalier run`"),
        ({"learning_rate": "fast"}, "`learning_rate` is 'fast' (a text); wanted a number."),
        ({"seed": 1.5}, "`seed` is 1.5 (a number); wanted a whole number."),
        ({"seed": True}, "`seed` is true; wanted a whole number."),
        ({"packing": 1}, "`packing` is 1 (a whole number); wanted true or false."),
        ({"output_dir": 2024}, "wanted a text. Put it in quotes."),
        ({"learning_rate": float("nan")}, "wanted a number"),
        ({"layout": "treee"}, "wanted one of auto, tree, padded. Did you mean `tree`?"),
        ({"report_to": ["wandbb"]}, "Did you mean `wandb`?"),
        ({"model_config": [1]}, "`model_config` is a list of 1; wanted a mapping or a text or null."),
        ({"learning_rate": -1}, "`learning_rate` is -1; wanted a number of at least 0."),
        ({"freeze_ratio": 1.5}, "wanted a number of at least 0 and at most 1."),
        ({"lora_dropout": 1}, "less than 1."),
        (
            {"tokens_per_step": 9, "batch_size": 2},
            "`tokens_per_step` and `per_device_train_batch_size` both set",
        ),
        ({"dataset": None}, "`dataset` is missing"),
    ],
)
def test_a_wrong_option_is_refused_with_its_remedy(raw: dict[str, Any], message: str) -> None:
    assert message in refusal(raw)


def test_all_problems_come_in_one_message_with_their_lines(tmp_path: Path) -> None:
    text = "stage: sft\nmodel: m\ndataset: d\nsede: 1\nlr: fast\nlayout: flat\nppo_epochs: 3\n"
    raw = load_yaml(written(tmp_path, text), ["packing=maybe"])
    with pytest.raises(UserError) as error:
        build(raw, COMMON, all_classes=ALL)
    lines = str(error.value).splitlines()
    assert lines[0] == "5 options are wrong:"
    for number, name in [
        (4, "`sede`"),
        (5, "`learning_rate` (written `lr`)"),
        (6, "`layout`"),
        (7, "`ppo_epochs`"),
    ]:
        assert any(f"run.yaml:{number}: {name}" in line for line in lines), name
    assert any("the command line: `packing` is 'maybe'" in line for line in lines)


def test_a_stage_is_known_by_its_name_or_its_synonym() -> None:
    assert stage_of({"stage": "sft"}, ALL) == "sft"
    assert stage_of({"stage": "pt"}, {"pretrain": COMMON}) == "pretrain"
    assert stage_of({"stage": "rm"}, {"reward": COMMON}) == "reward"
    with pytest.raises(UserError, match="`stage` is missing; wanted one of sft, ppo, dpo"):
        stage_of({}, ALL)
    with pytest.raises(UserError, match="Did you mean `ppo`"):
        stage_of({"stage": "pppo"}, ALL)
    with pytest.raises(UserError, match="wanted one of"):
        stage_of({"stage": ["sft"]}, ALL)


# --- other tools' names -----------------------------------------------------------------------------------------


def test_a_llama_factory_file_runs_as_it_is(tmp_path: Path) -> None:
    raw = load_yaml(written(tmp_path, LLAMA_FACTORY))
    values, notes = canonical(raw)
    built = build(raw, ALL["dpo"], all_classes=ALL)
    assert built == build(values, ALL["dpo"], all_classes=ALL)
    assert built[DataOptions].dataset == ["identity", "alpaca_en_demo"]
    assert built[TokenizedOptions].preprocessing_num_workers == 16
    assert built[EngineOptions].precision == "bf16" and built[OptimizerOptions].optim == "adamw"
    assert built[TrainOptions].max_steps is None and built[TrackOptions].report_to == []
    assert built[ModelOptions].trust_remote_code and built[RunOptions].resume is True
    ignored = [
        "do_train",
        "overwrite_cache",
        "plot_loss",
        "overwrite_output_dir",
    ]
    assert [note.split("`")[1] for note in notes] == [*ignored, "ddp_timeout"]
    assert f"{tmp_path}/run.yaml:6: `do_train` is not used: " in notes[0]


@pytest.mark.parametrize(
    ("raw", "ours"),
    [
        ({"max_length": 5}, {"cutoff_len": 5}),
        ({"max_length": 5, "cutoff_len": 5}, {"cutoff_len": 5}),
        ({"stage": "dpo", "beta": 0.2}, {"stage": "dpo", "pref_beta": 0.2}),
        ({"stage": "grpo", "beta": 0.2}, {"stage": "grpo", "kl_coef": 0.2}),
        ({"fp16": True, "bf16": False}, {"precision": "fp16"}),
        ({"bf16": False, "fp16": True}, {"precision": "fp16"}),
        ({"bf16": False}, {"precision": "fp32"}),
        ({"bf16": False, "precision": "auto"}, {"precision": "auto"}),
        ({"bf16": False, "fp16": False}, {"precision": "fp32"}),
        ({"load_in_4bit": True}, {"quantization_bit": 4}),
        ({"load_in_4bit": False}, {}),
        ({"disable_gradient_checkpointing": True}, {"gradient_checkpointing": False}),
        ({"stages": [{"name": "a", "lr": 1}]}, {"stages": [{"name": "a", "learning_rate": 1}]}),
    ],
)
def test_other_names_have_one_meaning(raw: dict[str, Any], ours: dict[str, Any]) -> None:
    values, notes = canonical(raw)
    assert values == ours and notes == []
    assert canonical(values)[0] == ours


@pytest.mark.parametrize("raw", [{"max_length": 5, "cutoff_len": 6}, {"bf16": True, "fp16": True}])
def test_two_names_with_two_values_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"to different values\. Keep one"):
        canonical(raw)


def test_the_tables_agree_with_the_options() -> None:
    from espalier.runs.train import CLASSES

    stage_keys = {item.name for classes in CLASSES.values() for kind in classes for item in fields(kind)}
    keys = {row.key for row in describe(COMMON)} | stage_keys
    targets = {*SYNONYMS.values(), *(name for table in STAGE_SYNONYMS.values() for name in table.values())}
    spread = {inner for table in SPREAD.values() for names in table.values() for inner in names}
    switched = {switch[0] for switch in SWITCHES.values()}
    assert targets - {name for table in SPREAD.values() for name in table} <= keys
    assert {*VALUES, *STAND_INS, *switched, *spread} <= keys
    tables = [set(SYNONYMS), set(SWITCHES), set(IGNORED), set(REFUSED), keys]
    assert sum(map(len, tables)) == len(set().union(*tables)), "a name stands in two tables"
    assert all(sentence and not sentence.endswith(".") for sentence in IGNORED.values())


# --- pipelines --------------------------------------------------------------------------------------------------

PIPELINE = """\
model_config: {hidden_size: 8}
dataset: d
ppo_epochs: 2
max_length: 64
do_train: true
stages:
- {name: base, stage: sft}
- {name: ppo-1, stage: ppo, model_config: null, model: "run:base", cutoff_len: 32}
"""


def test_shared_keys_go_to_the_stages_that_know_them(tmp_path: Path) -> None:
    raw = load_yaml(written(tmp_path, PIPELINE))
    base, ppo = split_pipeline(raw, ALL)
    assert base == {
        "model_config": {"hidden_size": 8},
        "dataset": "d",
        "cutoff_len": 64,
        "name": "base",
        "stage": "sft",
    }
    assert ppo["ppo_epochs"] == 2 and ppo["cutoff_len"] == 32 and ppo["model_name_or_path"] == "run:base"
    assert build(ppo, ALL["ppo"], all_classes=ALL)[PPO].ppo_epochs == 2
    assert build(base, ALL["sft"], all_classes=ALL)[RunOptions].name == "base"
    assert base.where("cutoff_len").endswith("run.yaml:4: `cutoff_len` (written `max_length`)")
    assert len(canonical(raw)[1]) == 1
    assert raw == load_yaml(tmp_path / "run.yaml"), "the mapping that was handed in is left as it was"


@pytest.mark.parametrize(
    ("stages", "shared", "message"),
    [
        (None, {}, "`stages` must be a list"),
        ([], {}, "`stages` must be a list"),
        (["sft"], {}, "`stages` must be a list"),
        ([{"stage": "sft"}], {}, "Stage 1 has no `name`"),
        ([{"name": "a b", "stage": "sft"}], {}, "it is a folder"),
        ([{"name": "../a", "stage": "sft"}], {}, "it is a folder"),
        ([{"name": "a", "stage": "sft"}, {"name": "a", "stage": "ppo"}], {}, "is taken by an earlier stage"),
        ([{"name": "a", "stage": "stf"}], {}, "Did you mean `sft`?"),
        ([{"name": "a"}], {}, "`stage` is missing"),
        ([{"name": "a", "stage": "sft"}], {"stage": "sft"}, "Move it there"),
        ([{"name": "a", "stage": "sft"}], {"sede": 1}, "Did you mean `seed`?"),
        ([{"name": "a", "stage": "sft"}], {"ppo_epochs": 1}, "is an option of ppo, not of any stage of this pipeline"),
        ([{"name": "a", "stage": "sft", "model": "run:a"}], {}, "a is not earlier than this stage"),
        ([{"name": "base", "stage": "sft"}, {"name": "b", "stage": "sft", "dataset": [{"path": "run:bsae/x"}]}], {},
         "Did you mean run:base?"),
        ([{"name": "a", "stage": "sft"}], {"model": "run:b"}, "b is no stage of this pipeline. Earlier: none."),
    ],
)  # fmt: skip
def test_a_wrong_pipeline_is_refused_with_its_remedy(
    stages: Any, shared: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        split_pipeline({**shared, "stages": stages}, ALL)
    assert message in str(error.value)


# --- the way back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comments", [False, True])
def test_what_is_dumped_is_read_back_equal(tmp_path: Path, comments: bool) -> None:
    raw = load_yaml(
        written(
            tmp_path,
            "stage: dpo\ndataset: [{path: 数据.jsonl, weight: 2}]\nmodel_config: {eps: 1e-6, a: {b: no}}\n",
        )
    )
    built = build(raw, ALL["dpo"], all_classes=ALL)
    text = dump_yaml(built, comments=comments)
    assert "数据" in text and ("# The seed of every random choice." in text) == comments
    again = build(load_yaml(written(tmp_path, text, "again.yaml")), ALL["dpo"], all_classes=ALL)
    assert again == built
    assert sum(len(fields(kind)) for kind in ALL["dpo"]) == len(load_yaml(tmp_path / "again.yaml"))


def test_the_hash_sees_values_and_not_their_order() -> None:
    first = options_hash({"a": 1, "b": {"c": [1, 2], "d": "é"}})
    assert first == options_hash({"b": {"d": "é", "c": [1, 2]}, "a": 1}) and len(first) == 64
    assert len({first, options_hash({"a": 2, "b": {"c": [1, 2], "d": "é"}}), options_hash({"a": 1})}) == 3


def test_describe_speaks_plainly() -> None:
    rows = {row.key: row for row in describe(COMMON)}
    assert rows["seed"][:5] == (
        "seed",
        "a whole number",
        42,
        "The seed of every random choice.",
        "at least 0",
    )
    assert rows["layout"].type == "one of auto, tree, padded"
    assert rows["lora_target"].default == ["all"] and rows["lora_target"].type == "a list (a text each)"
    assert rows["max_steps"].type == "a whole number or null"


def test_options_and_config_load_without_torch() -> None:
    code = "import sys, espalier.config, espalier.config.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
