"""`generation_batch_size`: how many answers at a time, said at the start, without any effect on the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from espalier.errors import UserError
from tests.stages.conftest import rows, run

MACHINE = ("tokens_per_second", "memory_bytes")
Make = Callable[..., dict[str, Any]]


def test_few_answers_at_a_time_give_the_same_run(options: Make, capsys: pytest.CaptureFixture[str]) -> None:
    said, told = {}, {}
    for size in (3, None):
        chosen = options("grpo", max_steps=2, name=f"of_{size}", generation_batch_size=size, samples=0)
        run(chosen)
        said[size] = capsys.readouterr()
        told[size] = [{key: n for key, n in row.items() if key not in MACHINE} for row in rows(chosen)]
    assert "3 answers are sampled at a time: at most " in "".join(said[3])
    assert "256 answers are sampled at a time: at most " in "".join(said[None])
    assert {"eval_reward", "reward", "grad_norm"} <= {key for row in told[3] for key in row}
    assert told[3] == told[None]


def test_what_cannot_fit_ends_the_run_before_it_samples(
    options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("espalier.stages.rollouts.free_bytes", lambda device: 2 * 10**8)
    with pytest.raises(UserError, match=r"generation_batch_size 1000000: .* can take .* GB.*at most"):
        run(options("grpo", generation_batch_size=10**6))
