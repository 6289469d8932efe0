"""The tasks of CLUE and FewCLUE that choose: their files, their classes, and how they become questions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from espalier.data.records import LeftOut
from espalier.errors import UserError
from espalier.exam.task import Question, Shots, Task
from espalier.exam.tasks import items, pangu, plain
from espalier.exam.tasks.items import Item, Read, classes, classified
from espalier.exam.tasks.settings import NoShots, Settings, first_files, folder_of
from espalier.exam.tasks.shots import draw_shots

_INFERENCE = ("entailment", "neutral", "contradiction")

_EVAL: tuple[str | tuple[str, ...], ...] = ("dev.json", "test_public.json", "dev_few_all.json", "dev_0.json")
_TRAIN: tuple[str | tuple[str, ...], ...] = (
    "train.json", "train.50k.json", "train.30k.json", "train.10k.json", "train.3k.json",
    "train_few_all.json", "train_0.json",
)  # fmt: skip
_C3 = (("d-{}.json", "m-{}.json"), ("c3-d-{}.json", "c3-m-{}.json"))


@dataclass(frozen=True)
class Spec:
    """Where a task's files are and what its labels are; `labels` is () where questions have choices of their own."""

    folders: tuple[str, ...]
    read: Read
    labels: tuple[str, ...] = ()
    evaluation: tuple[str | tuple[str, ...], ...] = _EVAL
    train: tuple[str | tuple[str, ...], ...] = _TRAIN
    test: tuple[str | tuple[str, ...], ...] = ("test.json",)


def _pairs(*labels: str, leave: str = "") -> Read:
    return classified(labels, "sentence1", "sentence2", leave=leave)


def _many(task: str) -> Read:
    return classified([label for label, _ in classes(task)], "sentence")


def _c3(split: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(name.format(split) for name in names) for names in _C3)


SPECS: dict[str, Spec] = {
    "ocnli": Spec(("ocnli", "ocnli_public"), _pairs(*_INFERENCE, leave="-"), _INFERENCE),
    "cmnli": Spec(("cmnli", "cmnli_public"), _pairs(*_INFERENCE, leave="-"), _INFERENCE),
    "chid": Spec(("chid", "chid_public", "chid_fewclue"), items.read_chid),
    "cluewsc2020": Spec(("cluewsc2020", "cluewsc", "cluewsc2020_public"), items.read_wsc, ("false", "true")),
    "c3": Spec(("c3", "c3_public"), items.read_c3, (), _c3("dev"), _c3("train"), ("test.json", *_c3("test"))),
    "afqmc": Spec(("afqmc", "afqmc_public"), _pairs("0", "1"), ("0", "1")),
    "csl": Spec(("csl", "csl_public"), classified(("0", "1"), "abst", "keyword"), ("0", "1")),
    "iflytek": Spec(("iflytek", "iflytek_public"), _many("iflytek"), tuple(k for k, _ in classes("iflytek"))),
    "tnews": Spec(("tnews", "tnews_public"), _many("tnews"), tuple(k for k, _ in classes("tnews"))),
    "bustm": Spec(("bustm",), _pairs("0", "1"), ("0", "1")),
    "eprstmt": Spec(("eprstmt",), classified(("Negative", "Positive"), "sentence"), ("Negative", "Positive")),
    "csldcp": Spec(("csldcp",), items.read_csldcp),
}


def clue_task(name: str, settings: Settings) -> Task:
    """One of `SPECS` as a task.

    Raises:
        UserError: its folder or file is missing, or a line cannot be read.
        NoShots: shots are wanted and there is no train file.
    """
    spec = SPECS[name]
    folder = folder_of(settings.data, spec.folders)
    names = spec.evaluation if settings.split == "dev" else spec.test
    files = first_files(folder, names)
    if not files:
        listed = ", ".join(e if isinstance(e, str) else " with ".join(e) for e in names)
        raise UserError(f"{folder}: no file of questions; wanted {listed}.")
    labels = items.csldcp_labels(folder) if name == "csldcp" else spec.labels
    prompts = pangu if settings.prompts == "pangu" else plain
    train = first_files(folder, spec.train) if settings.shots else []
    if settings.shots and not train:
        raise NoShots(f"{name}: no train file in {folder}, and solved examples come from nowhere else.")

    def asked(item: Item, before: Shots) -> Question:
        prompt, candidates = prompts.ask(name, item, labels)
        gold = item.gold
        if settings.negatives is not None and not item.choices and len(candidates) > settings.negatives + 1:
            order = _some(name, item, len(candidates), settings)
            candidates = tuple(candidates[i] for i in order)
            gold = None if gold is None else order.index(gold)
        return Question(item.id, prompt, candidates, gold, source=item.source, shots=before)

    def pool() -> Iterator[tuple[str, str]]:
        for item in _items(spec.read, train):
            if isinstance(item, Item) and item.gold is not None:
                shown = pangu.shortened(name, item) if prompts is pangu else item
                prompt, candidates = prompts.ask(name, shown, labels)
                yield prompt, candidates[item.gold].text

    separator = "\n" if prompts is pangu else "\n\n"
    where = ", ".join(str(path) for path in train)
    fixed = Shots()
    if settings.shots:
        pairs = draw_shots(pool(), settings.shots, settings.seed, where)
        fixed = Shots("", pairs, separator)
    whole = list(dict.fromkeys(pool())) if settings.shots and settings.new_shots else []

    def read() -> Iterator[Question | LeftOut]:
        for item in islice(_items(spec.read, files), settings.limit):
            if isinstance(item, LeftOut):
                yield item
            elif whole:
                maker = random.Random(f"{settings.seed}:{item.source}:{item.id}")
                yield asked(item, Shots("", tuple(maker.sample(whole, settings.shots)), separator))
            else:
                yield asked(item, fixed)

    def submission(answers: Iterable[tuple[Question, int]]) -> str:
        if name == "chid":
            return json.dumps({f"#{question.id}#": said for question, said in answers}, indent=1) + "\n"
        names = dict(zip(prompts.words(name, labels), labels, strict=True)) if labels else {}
        return "".join(
            json.dumps({"id": q.id, "label": names.get(q.candidates[said].label, said)}) + "\n"
            for q, said in answers
        )

    return Task(
        name=name,
        read=read,
        shots=settings.shots,
        normalise="mean" if prompts is pangu else plain.NORMALISE.get(name, "sum"),  # type: ignore[arg-type]
        about={
            "prompts": f"{settings.prompts} v{prompts.VERSION}",
            "files": [path.name for path in files],
            "train": [path.name for path in train],
            "candidates": "own" if not labels else min(len(labels), (settings.negatives or len(labels)) + 1),
            "seed": settings.seed,
        },
        inputs=(*files, *train, *folder.glob("*_answer.json")),
        submission=None if settings.split == "dev" else submission,
    )


def _items(read: Read, files: Sequence[Path]) -> Iterator[Item | LeftOut]:
    """Items of all files; one that repeats an id gets its place in the file as well."""
    seen: set[int] = set()
    for file in files:
        for item in read(file):
            if isinstance(item, Item):
                if hash(item.id) in seen:
                    item = replace(item, id=f"{item.id}@{item.source.rsplit('/', 1)[-1]}")
                seen.add(hash(item.id))
            yield item


def _some(name: str, item: Item, count: int, settings: Settings) -> list[int]:
    """Indices of the right label and some wrong ones, shuffled; the same in every process."""
    maker = random.Random(f"{settings.seed}:{name}:{item.source.rsplit('/', 1)[-1]}:{item.id}")
    wrong = [i for i in range(count) if i != item.gold]
    assert settings.negatives is not None
    right = [] if item.gold is None else [item.gold]
    chosen = right + maker.sample(wrong, settings.negatives + 1 - len(right))
    maker.shuffle(chosen)
    return chosen
