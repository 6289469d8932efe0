"""What reaches the screen is ours: a library that warns at its import, or in passing, is not heard; our notices are."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from espalier import noise

SCRIPT = '''
import importlib.abc, logging, sys, warnings

class Loud(importlib.abc.MetaPathFinder):
    """As bitsandbytes on a processor without its kernels: a warning by logging, one by Python, when it is imported."""
    def find_spec(self, name, path=None, target=None):
        if name in ("peft", "bitsandbytes", "transformers", "accelerate"):
            for logger in (name, name + ".backends", "some.other.library"):
                logging.getLogger(logger).warning("NOISE logged by %s", logger)
            warnings.warn(f"NOISE warned by {name}")
            seen.add(name)
        return None

seen = set()
sys.meta_path.insert(0, Loud())
from espalier import cli
for arguments in __import__("json").loads(sys.argv[1]):
    sys.argv = ["espalier", *arguments]
    print("$", *arguments, file=sys.stderr)
    try:
        cli.main()
    except SystemExit as end:
        assert end.code == 0, (arguments, end.code)
assert {"peft", "transformers"} <= seen, seen
'''
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = {
    "stage": "sft", "output_dir": "run", "dataset": ["sft.jsonl"], "vocab_size": 300, "max_steps": 1, "save_steps": 0,
    "precision": "fp32", "finetuning_type": "lora", "lora_rank": 2, "per_device_train_batch_size": 2, "val_size": 0,
    "model_config": {"model_type": "qwen2", **SIZES},
}  # fmt: skip


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of stderr, from one interpreter: help, a look at data, a training from nothing, a look at its model."""
    folder = tmp_path_factory.mktemp("noise")
    rows = [{"prompt": "one", "completion": "two"}, {"prompt": "three", "completion": "four"}]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "c.yaml").write_text(json.dumps(CONFIG), "utf-8")
    full = ["run", "c.yaml", "finetuning_type=full"]
    lora = ["run", "c.yaml", "model_config=null", "model_name_or_path=run/sft/model", "output_dir=more"]
    commands = [["--help"], ["inspect", "sft.jsonl"], full, ["inspect", "run/sft/model"], lora]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"} | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "NOISE" not in done.stdout
    return done.stderr.splitlines()


@pytest.mark.slow
def test_only_our_lines(lines: list[str]) -> None:
    ours = ("$ ", "sft: ", "sft 1/1", "report: ", "talk to it: ", "examine it: ", "note: ")
    assert [line for line in lines if not line.startswith(ours)] == []


@pytest.mark.slow
def test_our_own_notices_are_there_each_once_in_one_line(lines: list[str]) -> None:
    notes = [line for line in lines if line.startswith("note: ")]
    assert len([n for n in notes if "num_key_value_heads is 2, as num_attention_heads says" in n]) == 1
    assert len([n for n in notes if "run/sft/model: transformers takes its Qwen2Tokenizer" in n]) >= 1
    assert not any(".py" in note for note in notes)


def test_what_a_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    from espalier.noise import quiet_loggers

    logger = logging.getLogger("peft")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    quiet_loggers()
    assert logger.level == logging.DEBUG


def test_a_slow_import_is_announced_once_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    finders = len(sys.meta_path)
    noise.announce_slow_imports()
    assert len(sys.meta_path) == finders, "a log is told nothing"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    noise.announce_slow_imports()
    assert sys.meta_path[0].find_spec("json", None) is None and capsys.readouterr().err == ""
    assert sys.meta_path[0].find_spec("torch", None) is None
    assert "loading torch" in capsys.readouterr().err and len(sys.meta_path) == finders
