"""Judges of written answers: exact match, contained answers, ROUGE, BLEU, CMRC's F1, mathematics.

Each takes an answer and the right ones and gives numbers by metric, all in [0, 1]; the best over the right ones
counts. ROUGE, BLEU and symbolic equality come from libraries of the extra `exams`.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from espalier.checking.library import library
from espalier.exam.task import Judge
from espalier.maths.metrics import exact_match, normalise_answer

_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


def judge_exact_match(text: str, references: tuple[str, ...]) -> dict[str, float]:
    """1 where the answer is a right one after `normalise_answer`."""
    return {"exact_match": float(exact_match(text, references))}


def judge_contains(text: str, references: tuple[str, ...]) -> dict[str, float]:
    """1 where a right answer stands in the text, not inside of a longer word or number.

    >>> judge_contains("It is 17.", ("7",)), judge_contains("It is 7 now", ("7",))
    ({'contains': 0.0}, {'contains': 1.0})
    """
    answer = normalise_answer(text)
    contained = any(re.search(_bounded(normalise_answer(right)), answer) for right in references)
    return {"contains": float(contained)}


def _bounded(text: str) -> str:
    before = r"(?<![0-9a-z])" if re.match(r"[0-9a-z]", text) else ""
    after = r"(?![0-9a-z])" if re.search(r"[0-9a-z]$", text) else ""
    return before + re.escape(text) + after


def judge_rouge(text: str, references: tuple[str, ...]) -> dict[str, float]:
    """F1 of ROUGE-1, -2 and -L (Lin 2004), on characters and, for Chinese, on jieba's words too.

    English is cut at white space and punctuation without stemming, as one list; so is each Latin word or number
    inside Chinese text.
    """
    scores = _rouge("", _characters(text), [_characters(r) for r in references])
    if any(_HAN.search(r) for r in references):
        scores |= _rouge("word_", _words(text), [_words(r) for r in references])
    return scores


def _rouge(prefix: str, text: list[str], references: list[list[str]]) -> dict[str, float]:
    scorer = _scorer()
    best: dict[str, float] = {}
    for reference in references:
        for name, score in scorer.score(reference, text).items():
            key = prefix + name.replace("rougeL", "rouge_l").replace("rouge1", "rouge_1").replace(
                "rouge2", "rouge_2"
            )
            best[key] = max(best.get(key, 0.0), score.fmeasure)
    return best


@cache
def _scorer() -> Any:
    scorer = library("rouge_score.rouge_scorer", "rouge-score")

    class _AsTheyAre:
        """The library's own tokenizer drops all that is not a-z and 0-9."""

        def tokenize(self, tokens: list[str]) -> list[str]:
            return tokens

    return scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_AsTheyAre())


def _characters(text: str) -> list[str]:
    """Chinese characters one by one, other words and numbers whole; white space and punctuation dropped.

    >>> _characters("用GPU跑了3.5小时。")
    ['用', 'gpu', '跑', '了', '3.5', '小', '时']
    """
    return re.findall(
        r"[\u3400-\u9fff\uf900-\ufaff]|\d+(?:\.\d+)?|[^\W\d_\u3400-\u9fff\uf900-\ufaff]+", text.lower()
    )


def _words(text: str) -> list[str]:
    words = _jieba().cut(text.lower())
    return [word for word in words if re.search(r"\w", word)]


@cache
def _jieba() -> Any:
    jieba = library("jieba", "jieba")
    jieba.setLogLevel(60)  # it greets on stderr
    return jieba.Tokenizer()


def judge_bleu(text: str, references: tuple[str, ...]) -> dict[str, float]:
    """Sentence BLEU-4 (Papineni et al. 2002) of sacrebleu with its default smoothing, Chinese cut by characters."""
    chinese = any(_HAN.search(r) for r in references)
    made = _bleu("zh" if chinese else "13a")
    return {"bleu": made.sentence_score(text, list(references)).score / 100}


@cache
def _bleu(tokenize: str) -> Any:
    return library("sacrebleu.metrics", "sacrebleu").BLEU(tokenize=tokenize, effective_order=True)


def judge_text(text: str, references: tuple[str, ...]) -> dict[str, float]:
    """ROUGE, BLEU and exact match together."""
    return judge_rouge(text, references) | judge_bleu(text, references) | judge_exact_match(text, references)


JUDGES: dict[str, Judge] = {
    "exact_match": judge_exact_match,
    "contains": judge_contains,
    "rouge": judge_rouge,
    "bleu": judge_bleu,
    "text": judge_text,
}
"""The metrics that a user's task file may name."""
