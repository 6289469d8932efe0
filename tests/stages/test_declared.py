"""What is read of the stages' text is what the stages declare; and the first look answers without torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from espalier.runs.pipeline import ALL_CLASSES
from espalier.stages.declared import declared


def test_the_same_keys_of_the_same_classes_in_the_same_order() -> None:
    found = declared()
    assert list(found) == list(ALL_CLASSES)
    for stage, classes in ALL_CLASSES.items():
        assert [kind.__name__ for kind in found[stage]] == [kind.__name__ for kind in classes]
        assert [[item.name for item in fields(kind)] for kind in found[stage]] == [
            [item.name for item in fields(kind)] for kind in classes
        ]


def test_what_the_text_says_is_what_is_meant_and_most_of_it_is_said() -> None:
    said = unsaid = 0
    for stage, classes in ALL_CLASSES.items():
        for ours, real in zip(declared()[stage], classes, strict=True):
            types, wanted = get_type_hints(ours), get_type_hints(real)
            for item, other in zip(fields(ours), fields(real), strict=True):
                if (types[item.name] is Any and wanted[item.name] is not Any) or not item.metadata["help"]:
                    unsaid += 1
                    continue
                said += 1
                assert types[item.name] == wanted[item.name]
                assert item.default == other.default and item.metadata == other.metadata
                factories = item.default_factory, other.default_factory
                assert MISSING in factories or factories[0]() == factories[1]()
    assert unsaid < said / 20


PROGRAM = """
import sys
from espalier.cli import app, guarded
code = guarded(lambda: app(sys.argv[1:], standalone_mode=False))
assert not {"torch", "transformers", "datasets", "accelerate"} & set(sys.modules), "slow"
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "none.yaml"], "none.yaml: no such file"),
        (["run", "sft.yaml", "learning_rat=1"], "Did you mean `learning_rate`?"),
        (["run", "sft.yaml", "--stage", "sfx"], "Did you mean `sft`?"),
        (["dpo", "sft.yaml", "clip_range=0.1"], "an option of ppo"),
        (["ppo", "sft.yaml", "group_size=0"], "a number of at least 1"),
        (["sft", "sft.yaml", "dataset=d.json"], "near it"),
        (["sft", "sft.yaml", "model_name_or_path=./none"], "there is no such folder"),
        (["sft", "sft.yaml", "model_name_or_path=own/er"], "HF_HUB_OFFLINE"),
        (["chat", "own/er"], "HF_HUB_OFFLINE"),
        (["evaluate", "own/er", "--tasks", "mmlu", "--out", "x"], "HF_HUB_OFFLINE"),
    ],
)
def test_mistakes_are_said_in_a_second_without_torch(words: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"instruction": "a", "output": "b"}), "utf-8")
    (tmp_path / "sft.yaml").write_text("stage: sft\ndataset: d.jsonl\nmodel_name_or_path: .\n", "utf-8")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2 and told in " ".join(done.stderr.split()), done.stderr
    assert after.ru_utime - before.ru_utime < 3, "seconds of CPU: torch alone takes more on a slow machine"
