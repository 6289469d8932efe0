"""What the table says, against plain sums over the same logits; and sizes against the files."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from espalier.models import load
from espalier.models.measure import compare
from espalier.models.quantise.methods import Quantisation
from espalier.models.quantise.sizes import disk_bytes, held_bytes
from tests.models.conftest import Tiny

ROWS = [
    ([3, 9, 27, 81, 46], [True, True, True, False, True]),
    (list(range(5, 45)), [False] * 20 + [True] * 20),
]


def test_errors_and_perplexities_are_those_of_the_logits(tiny: Tiny, tmp_path: Path) -> None:
    plain = tiny("qwen2")
    plain.save_pretrained(tmp_path)  # type: ignore[operator]
    small = load.load_lm(str(tmp_path), quantisation=Quantisation("cpm", 4)).eval()
    found = compare(plain, small, ROWS, rounds=1)
    nll, nll_after, kl, gaps, same, n = 0.0, 0.0, 0.0, [], 0, 0
    with torch.no_grad():
        for tokens, scored in ROWS:
            a, b = (lm(input_ids=torch.tensor([tokens])).logits[0] for lm in (plain, small))
            for at in range(1, len(tokens)):
                if scored[at]:
                    p, q = a[at - 1].softmax(-1).double(), b[at - 1].softmax(-1).double()
                    nll -= math.log(p[tokens[at]])
                    nll_after -= math.log(q[tokens[at]])
                    kl += float((p * (p / q).log()).sum())
                    gaps.append((a[at - 1] - a[at - 1].mean()) - (b[at - 1] - b[at - 1].mean()))
                    same += int(p.argmax() == q.argmax())
                    n += 1
    assert found.tokens == n == 23
    assert math.isclose(found.perplexity, math.exp(nll / n), rel_tol=1e-4)
    assert math.isclose(found.perplexity_after, math.exp(nll_after / n), rel_tol=1e-4)
    assert math.isclose(found.kl, kl / n, rel_tol=1e-3)
    gap = torch.stack(gaps).abs()
    assert math.isclose(found.logit_error_max, float(gap.max()), rel_tol=1e-4)
    assert math.isclose(found.logit_error_mean, float(gap.mean()), rel_tol=1e-4)
    assert found.same_choice == same / n and found.read > 0 and found.written_ratio > 0


def test_a_model_against_itself_says_nothing_is_lost(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    found = compare(lm, lm, ROWS, rounds=1)
    assert found.kl == 0 and found.logit_error_max == 0 and found.same_choice == 1
    assert found.perplexity == found.perplexity_after


def test_sizes_are_those_of_the_files(tiny: Tiny, tmp_path: Path) -> None:
    plain = tiny("llama", tie_word_embeddings=True)
    plain.save_pretrained(tmp_path / "plain")  # type: ignore[operator]
    held = held_bytes(plain)
    assert held == {"float32": 4 * sum(p.numel() for p in plain.parameters())}
    on_disk = disk_bytes(tmp_path / "plain")
    assert on_disk is not None and 0 < on_disk - sum(held.values()) < 4096  # the header
    small = load.load_lm(str(tmp_path / "plain"), quantisation=Quantisation("cpm", 8))
    small.save_pretrained(tmp_path / "small")  # type: ignore[operator]
    after = disk_bytes(tmp_path / "small")
    assert after is not None and 0 < after - sum(held_bytes(small).values()) < 4096
    assert disk_bytes("some/hub-id") is None
