"""Numbers for people: estimates with their standard errors, and a few readings of a training step.

Legend: B branches, A trained tokens per branch, N trained tokens in all, P pairs, Q questions.

Left out: intervals other than the normal one, and anything that needs a tokenizer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from espalier.maths.ratio import ratio


class Difference(NamedTuple):
    """A mean difference of n pairs, its standard error, and the two ends of its confidence interval."""

    value: float
    stderr: float
    low: float
    high: float
    n: int


def clip_fraction(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """1.0 for each token that PPO's clip takes out of the gradient, else 0.0; all (B, A) as in `losses.clipped_policy`.

    Only the side that the advantage pushes towards is ever clipped: ratios above 1 + clip_high with a positive
    advantage, ratios below 1 - clip_low with a negative one. Take the masked mean of it.

    >>> ratio, advantages = torch.tensor([[1.5, 1.5]]).log(), torch.tensor([[1.0, -1.0]])
    >>> clip_fraction(ratio, torch.zeros(1, 2), advantages, 0.2, 0.2).tolist()
    [[1.0, 0.0]]
    """
    ratio = torch.exp(logprobs - old_logprobs)
    too_high = (ratio > 1 + clip_high) & (advantages > 0)
    too_low = (ratio < 1 - clip_low) & (advantages < 0)
    return (too_high | too_low).to(logprobs.dtype)


def paired_difference(
    before: Sequence[float] | Tensor, after: Sequence[float] | Tensor, level: float = 0.95
) -> Difference:
    """Mean of after - before on the same n questions, with a normal confidence interval at `level`.

    Pairing takes the difficulty of the questions out of the error (Miller 2024, "Adding Error Bars to Evals"). before,
    after: (Q,) in the same order. n >= 2.

    >>> difference = paired_difference([0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0])
    >>> [round(v, 4) for v in difference]
    [0.25, 0.25, -0.24, 0.74, 4]
    """
    first, second = (torch.as_tensor(x, dtype=torch.float64) for x in (before, after))
    assert first.shape == second.shape and len(first) > 1, "a paired difference needs two equally long lists"
    mean, stderr, n = ratio(second - first, torch.ones_like(first))
    assert stderr is not None
    reach = NormalDist().inv_cdf(0.5 + level / 2) * stderr
    return Difference(mean, stderr, mean - reach, mean + reach, n)


_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_BETWEEN_CJK = re.compile(rf"(?<=[{_CJK}]) (?=[{_CJK}])")
_ENDS = " \t\n\"'`“”‘’「」『』《》()[]{}<>.,;:!?。、…~*_"


def normalise_answer(text: str) -> str:
    """The form in which two answers are compared: width, case, spaces and punctuation at the ends don't count.

    NFKC (full-width digits and letters become plain ones), casefold, runs of white space to one space and none
    between Chinese characters, quotes and punctuation off both ends. Inner punctuation and a leading point stay: 3.5 is not
    35, and .5 is not 5.

    >>> normalise_answer(" “Ｔhe answer is 7.”  "), normalise_answer("答 案 是７。")
    ('the answer is 7', '答案是7')
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _BETWEEN_CJK.sub("", text).lstrip(_ENDS.replace(".", "")).rstrip(_ENDS)


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Whether the prediction equals one of the references after `normalise_answer`.

    >>> exact_match("Tuesday.", ["tuesday"]), exact_match("17", ["7"])
    (True, False)
    """
    return normalise_answer(prediction) in {normalise_answer(reference) for reference in references}
