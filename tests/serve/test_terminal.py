"""The chat as a second process fed by a pipe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import processes


@pytest.mark.slow
def test_a_piped_conversation_is_answered_and_ends(folder: Path) -> None:
    command = [sys.executable, "-m", "espalier.cli", "chat", str(folder), "--max-new-tokens", "6"]
    lines = "你好\n/system Be brief.\n/clear\nHello\n/exit\nnever read\n"
    done = processes.run(command, input=lines, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "forgotten" in done.stderr and "Be brief." in done.stderr
    assert "forgotten" not in done.stdout and "Be brief." not in done.stdout


@pytest.mark.slow
def test_a_question_longer_than_the_model_is_cut_and_said(folder: Path) -> None:
    command = [sys.executable, "-m", "espalier.cli", "chat", str(folder), "--max-new-tokens", "5000"]
    done = processes.run(command, input="Hello " * 3000 + "\n/exit\n", capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "the model's context is" in done.stderr
    assert "were left out" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [["--temperature", "-1"], ["--top-p", "5"], ["--max-new-tokens", "0"]])
def test_a_setting_out_of_its_range_is_refused(folder: Path, wrong: list[str]) -> None:
    command = [sys.executable, "-m", "espalier.cli", "chat", str(folder), *wrong]
    done = processes.run(command, input="Hello\n", capture_output=True, timeout=120)
    assert done.returncode == 2
    assert f"{wrong[0][2:].replace('-', '_')} {float(wrong[1]):g}" in done.stderr.replace(".0", "")
