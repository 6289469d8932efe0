"""Candidates' scores by trees against lm_eval's "hf" backend: same model, same questions, float32, in turn.

    python benchmarks/exams.py [--data DIR] [--model S|M] [--tokenizer DIR] [--rounds 3] [--cases options,tnews,iflytek,letters]

With `--data` (a folder of the exams' folders) the questions are real: MMLU's options in full with 5 shots, TNEWS and IFLYTEK with
all labels and 3 shots, C-Eval's letters with 5 shots. Without, pseudo-text of the same shape. lm_eval gets the batch
size that is fastest for it here, and only its `loglikelihood` is timed, tokenising included, as on our side. Ours
asks 48 to 128 questions, so the solved examples are read once for as many; an exam has thousands.
"""

from __future__ import annotations

import argparse
import copy
import logging
import random
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from _common import model_of, paired, peak_flops, report, text, tokenizer_of
from espalier.exam.answers.choose import Asked, Chooser
from espalier.exam.answers.scorer import Scored
from espalier.exam.task import Candidate, Question
from espalier.exam.tasks import Settings, make_task
from espalier.exam.tasks.shots import Asker
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.probe import probe

CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "options": ("mmlu", 5, {"answers": "text"}),
    "tnews": ("tnews", 3, {}),
    "iflytek": ("iflytek", 3, {}),
    "letters": ("ceval", 5, {}),
}
"""Exam, shots, settings."""
PSEUDO = {"options": (4, 8), "tnews": (15, 2), "iflytek": (119, 3), "letters": (4, 1)}
"""Candidates, words of each."""
QUESTIONS = {"options": 64, "tnews": 128, "iflytek": 48, "letters": 64}
THEIRS = {"options": 24, "tnews": 12, "iflytek": 2, "letters": 24}
"""lm_eval shares nothing between questions, so fewer of them give its questions a second."""


def real(case: str, data: Path) -> list[Asked]:
    name, shots, how = CASES[case]
    task = make_task(name, Settings(data, **how), shots=shots)
    questions = (q for q in task.read() if isinstance(q, Question))
    return [Asker().ask(question) for question in islice(questions, QUESTIONS[case])]


def pseudo(case: str) -> list[Asked]:
    candidates, words = PSEUDO[case]
    prefix = "".join(f"Question: {text(70, i)}\nAnswer: {text(words, i + 1)}\n\n" for i in range(5))
    draw = random.Random(0)
    made = []
    for i in range(QUESTIONS[case]):
        answers = tuple(Candidate(" " + text(words, draw.randrange(10**6))) for _ in range(candidates))
        made.append(Asked(prefix, f"Question: {text(40, 100 + i)}\nAnswer:", answers))
    return made


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", type=Path)
    arguments.add_argument("--model", default="S", choices=("S", "M"))
    arguments.add_argument("--tokenizer", help="a folder; None: one trained on the questions' text")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--cases", default=",".join(CASES))
    arguments.add_argument("--drift", type=int, default=0, help="also score so many questions in bfloat16")
    asked_for = arguments.parse_args()
    logging.disable(logging.WARNING)
    cases = asked_for.cases.split(",")
    questions = {case: real(case, asked_for.data) if asked_for.data else pseudo(case) for case in cases}
    if asked_for.tokenizer:
        tokenizer = load.load_tokenizer(asked_for.tokenizer)
    elif asked_for.data:  # a tokenizer of the very texts, so that their lengths are those of a real one
        texts = [
            one.prefix + one.prompt + one.candidates[0].text for asked in questions.values() for one in asked
        ]
        tokenizer = load.train_tokenizer(texts * 4, 8192 if asked_for.model == "S" else 32768)
    else:
        tokenizer = tokenizer_of(asked_for.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs_lm = model_of(asked_for.model, tokenizer).eval().to(device)
    ours_lm = model_of(asked_for.model, tokenizer).eval().to(device)
    ours_lm.load_state_dict(theirs_lm.state_dict())
    tree = TreeModel(ours_lm, probe(ours_lm)).eval()
    peak = peak_flops() if device == "cpu" else float("nan")
    for case in cases:
        compare(case, questions[case], tree, theirs_lm, tokenizer, peak, asked_for)
        if asked_for.drift:
            drift(case, questions[case][: asked_for.drift], tree, tokenizer)


def drift(case: str, asked: list[Asked], tree: TreeModel, tokenizer: Any) -> None:
    """How far scores in bfloat16 are from those in float32, by trees and one candidate a row alike."""
    exact, _ = Chooser(tree, tokenizer).score(asked)
    lm = copy.deepcopy(tree.lm).bfloat16()
    for layout in ("tree", "padded"):
        half, _ = Chooser(TreeModel(lm, probe(lm, wanted=layout)).eval(), tokenizer).score(asked)
        differences = [
            abs(a - b) / n
            for x, y in zip(exact, half, strict=True)
            for a, b, n in zip(x.scores, y.scores, x.tokens, strict=True)
        ]
        same = sum(
            x.scores.index(max(x.scores)) == y.scores.index(max(y.scores))
            for x, y in zip(exact, half, strict=True)
        )
        print(
            f"{case}: bfloat16 in {layout} rows: {statistics.mean(differences):.4f} nats a token off on average, "
            f"{max(differences):.4f} at most; the same choice in {same} of {len(asked)} questions"
        )


def compare(
    case: str,
    asked: list[Asked],
    tree: TreeModel,
    lm: Any,
    tokenizer: Any,
    peak: float,
    how: argparse.Namespace,
) -> None:
    few = asked[: THEIRS[case]]
    pairs = [(one.prefix + one.prompt, c.text) for one in few for c in one.candidates]
    latest: dict[str, Any] = {}

    def theirs(batch: int, some: list[tuple[str, str]]) -> dict[str, float]:
        backend = HFLM(pretrained=lm, tokenizer=tokenizer, batch_size=batch, device=str(lm.device))
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(some)]
        start = time.perf_counter()
        latest["theirs"] = [score for score, _ in backend.loglikelihood(requests, disable_tqdm=True)]
        seconds = time.perf_counter() - start
        done = len(few) * len(some) / len(pairs)
        return {"items/s": done / seconds, "records": done, "seconds": seconds}

    def ours() -> dict[str, float]:
        chooser = Chooser(tree, tokenizer)  # nothing is remembered from the round before
        start, cpu = time.perf_counter(), time.process_time()
        latest["ours"], cost = chooser.score(asked)
        seconds, used = time.perf_counter() - start, time.process_time() - cpu
        flops = 2 * cost.computed * sum(p.numel() for n, p in tree.lm.named_parameters() if "layers" in n)
        return {
            "items/s": len(asked) / seconds,
            "tokens shared": cost.unshared / cost.computed,
            "of matmul peak": flops / used / peak,
            "records": float(len(asked)),
            "seconds": seconds,
        }

    trial = pairs[: max(32, len(asked[0].candidates))]
    best = max((1, 8, 32), key=lambda batch: theirs(batch, trial)["items/s"])
    name = f"lm_eval hf, batch {best}"
    found = paired({"espalier": ours, name: lambda: theirs(best, pairs)}, how.rounds)
    scores: list[Scored] = latest["ours"][: len(few)]
    flat = [score for one in scores for score in one.scores]
    worst = max(abs(a - b) for a, b in zip(flat, latest["theirs"], strict=True))
    same = at = 0
    for one in scores:
        other = latest["theirs"][at : at + len(one.scores)]
        same += one.scores.index(max(one.scores)) == other.index(max(other))
        at += len(one.scores)
    kind = ("real" if how.data else "pseudo") + (f" {Path(how.tokenizer).name}" if how.tokenizer else "")
    print(
        f"{case} ({kind}): the same choice in {same} of {len(scores)} questions, scores differ by {worst:.1e}"
    )
    report(f"exam {case} {kind} {how.model}", found, "items/s", "espalier")


if __name__ == "__main__":
    main()
