"""Precision is decided from what the processor has, the same in every call, and no noise of a timing changes it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from espalier import processor as bits
from espalier.engine import precision
from espalier.engine.precision import choose_precision, kept_precision
from espalier.engine.strategy import make_accelerator
from espalier.errors import UserError
from espalier.processor import best_precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (precision.OVERRIDE, "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    best_precision.cache_clear()
    yield
    best_precision.cache_clear()


def processor(monkeypatch: pytest.MonkeyPatch, **able: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)


def timings(monkeypatch: pytest.MonkeyPatch, *bf16: float) -> Iterator[float]:
    """bf16 takes these times in turn, float32 always 1."""
    turn = itertools.cycle(bf16)
    monkeypatch.setattr(bits, "_seconds", lambda dtype: 1.0 if dtype == torch.float32 else next(turn))
    return turn


@pytest.mark.parametrize("wanted", ["bf16", "fp32"])
def test_what_was_asked_is_taken(wanted: str) -> None:
    assert choose_precision(wanted, CPU) == wanted


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match="needs a GPU"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16"])
def test_instructions_decide(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timings(monkeypatch, 0.47)
    processor(monkeypatch, avx512_f=True, **{name: True})
    assert choose_precision("auto", CPU) == "bf16"
    best_precision.cache_clear()
    processor(monkeypatch, avx512_f=True, **{name: False})
    assert choose_precision("auto", CPU) == "fp32"


def test_a_fast_timing_alone_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    timings(monkeypatch, 0.01)
    processor(monkeypatch, avx2=True)
    assert choose_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize(
    ("bf16", "found"),
    [((0.47,), "bf16"), ((0.9,), "bf16"), ((50.0, 50.0, 0.5), "bf16"), ((20.0, 300.0, 9.0), "fp32")],
    ids=["as it should be", "a small gain", "two bursts of noise", "instructions that are not used"],
)
def test_noise_cannot_flip_it(bf16: tuple[float, ...], found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timings(monkeypatch, *bf16)
    processor(monkeypatch, avx512_bf16=True)
    assert choose_precision("auto", CPU) == found


@pytest.mark.parametrize(
    ("limit", "found"), [("AVX2", "fp32"), ("avx512_core", "fp32"), ("AVX512_CORE_BF16", "bf16")]
)
def test_a_limit_of_the_library_is_kept(limit: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timings(monkeypatch, 0.47)
    processor(monkeypatch, avx512_bf16=True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert choose_precision("auto", CPU) == found


def test_it_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, avx512_bf16=True)
    turn = timings(monkeypatch, 0.4, 90.0, 90.0, 90.0, 90.0)
    assert {choose_precision("auto", CPU) for _ in range(20)} == {"bf16"}
    assert next(turn) == 90.0  # one timing was taken, and no other


def test_this_machine_says_the_same_two_hundred_times() -> None:
    found = set()
    for _ in range(200 if bits.has_bf16_instructions() else 3):
        best_precision.cache_clear()
        found.add(choose_precision("auto", CPU))
    assert len(found) == 1


def test_the_environment_may_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, avx2=True)
    monkeypatch.setenv(precision.OVERRIDE, "bf16")
    assert choose_precision("auto", CPU) == "bf16"
    assert choose_precision("fp32", CPU) == "fp32"  # what is asked for wins
    monkeypatch.setenv(precision.OVERRIDE, "half")
    with pytest.raises(UserError, match="fp32, bf16 or fp16"):
        choose_precision("auto", CPU)


@pytest.mark.parametrize(
    ("summary", "found"),
    [(None, None), ("{", None), ("[]", None), ({"precision": "bf16"}, "bf16"), ({"precision": "no"}, None)],
)
def test_a_run_s_own_precision_is_found(summary: object, found: str | None, tmp_path: Path) -> None:
    if summary is not None:
        text = summary if isinstance(summary, str) else json.dumps(summary)
        (tmp_path / "summary.json").write_text(text)
    assert kept_precision(tmp_path) == found


def test_one_process_may_have_one_precision_after_another() -> None:
    """accelerate keeps it for the life of a process; here each run has its own."""
    found = [make_accelerator(wanted, cpu=True).mixed_precision for wanted in ("bf16", "fp32", "bf16")]
    assert found == ["bf16", "no", "bf16"]


def test_products_are_really_of_that_type() -> None:
    layer = torch.nn.Linear(4, 4)
    for wanted, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        accelerator = make_accelerator(wanted, cpu=True)  # type: ignore[arg-type]
        with accelerator.autocast():
            assert layer(torch.ones(1, 4)).dtype == dtype
