"""An exam of CLUE or FewCLUE as one value, and how it becomes a task."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from espalier.data.records import LeftOut
from espalier.exam.task import Question, Shots, Task
from espalier.exam.tasks.items import Item, Read
from espalier.exam.tasks.settings import FileNames, Settings, folder_of, question_files, train_files
from espalier.exam.tasks.shots import draw_shots
from espalier.exam.tasks.wording import VERSIONS, Wording

Answers = Iterable[tuple[Question, int]]
Labels = tuple[str, ...] | Callable[[Path], tuple[str, ...]]

_EVALUATION = ("dev.json", "test_public.json", "dev_few_all.json", "dev_0.json")
_TRAIN = (
    "train.json", "train.50k.json", "train.30k.json", "train.10k.json", "train.3k.json",
    "train_few_all.json", "train_0.json",
)  # fmt: skip


def label_answers(answers: Answers, labels: Mapping[str, str]) -> str:
    """A line ``{"id": …, "label": …}`` a question; the index of the choice where there is no label."""
    return "".join(
        json.dumps({"id": question.id, "label": labels.get(question.candidates[choice].label, choice)}) + "\n"
        for question, choice in answers
    )


def idiom_answers(answers: Answers, labels: Mapping[str, str]) -> str:
    """ChID's one object, ``{"#idiom000001#": index, …}``."""
    return json.dumps({f"#{question.id}#": choice for question, choice in answers}, indent=1) + "\n"


@dataclass(frozen=True)
class ClueExam:
    """An exam whose questions have labels, or choices of their own.

    Attributes:
        folders: names of its folder.
        read: a file -> its items.
        plain, pangu: how each prompt set asks them.
        labels: what the files call the classes (from the folder, where its files say them); () where questions have
            choices of their own.
        evaluation, train, test: names of its files; the first entry that is there whole.
        write: predictions of the test set, and word -> label -> the text of the file for submission.

    Raises:
        ValueError: a wording that has not a word for each label.
    """

    folders: tuple[str, ...]
    read: Read
    plain: Wording
    pangu: Wording
    labels: Labels = ()
    evaluation: FileNames = _EVALUATION
    train: FileNames = _TRAIN
    test: FileNames = ("test.json",)
    write: Callable[[Answers, Mapping[str, str]], str] = label_answers

    def __post_init__(self) -> None:
        for wording in (self.plain, self.pangu):
            if wording.words and isinstance(self.labels, tuple) and len(wording.words) != len(self.labels):
                raise ValueError(
                    f"{self.folders[0]}: {len(wording.words)} words for {len(self.labels)} labels."
                )

    def task(self, name: str, settings: Settings) -> Task:
        """The exam as a task.

        Raises:
            UserError: its folder or file is missing, or a line cannot be read.
            NoShots: shots are wanted and there is no train file.
        """
        folder = folder_of(settings.data, self.folders)
        dev = settings.split == "dev"
        files = question_files(folder, self.evaluation if dev else self.test)
        train = train_files(name, folder, self.train) if settings.shots else []
        labels = self.labels if isinstance(self.labels, tuple) else self.labels(folder)
        wording = self.plain if settings.prompts == "plain" else self.pangu
        words = dict(zip(wording.words or labels, labels, strict=True))
        questions = _Questions(name, self.read, wording, labels, settings)
        shots = questions.shots(train)
        return Task(
            name=name,
            read=lambda: questions.read_all(files, shots),
            shots=settings.shots,
            normalise=wording.normalise,
            about={
                "prompts": f"{settings.prompts} v{VERSIONS[settings.prompts]}",
                "files": [path.name for path in files],
                "train": [path.name for path in train],
                "candidates": "own" if not labels else min(len(labels), (settings.negatives or len(labels)) + 1),
                "seed": settings.seed,
            },
            inputs=(*files, *train, *folder.glob("*_answer.json")),
            submission=None if dev else lambda answers: self.write(answers, words),
        )  # fmt: skip


@dataclass(frozen=True)
class _Questions:
    """The items of an exam as questions, each with the solved examples before it."""

    name: str
    read: Read
    wording: Wording
    labels: tuple[str, ...]
    settings: Settings

    def shots(self, train: Sequence[Path]) -> Callable[[Item], Shots]:
        """The solved examples before an item: the same ones for all, or others for each (`Settings.new_shots`)."""
        settings, separator = self.settings, self.wording.separator
        if not settings.shots:
            return lambda item: Shots()
        where = ", ".join(str(path) for path in train)
        fixed = Shots("", draw_shots(self._examples(train), settings.shots, settings.seed, where), separator)
        if not settings.new_shots:
            return lambda item: fixed
        pool = list(dict.fromkeys(self._examples(train)))

        def drawn(item: Item) -> Shots:
            maker = random.Random(f"{settings.seed}:{item.source}:{item.id}")
            return Shots("", tuple(maker.sample(pool, settings.shots)), separator)

        return drawn

    def read_all(self, files: Sequence[Path], shots: Callable[[Item], Shots]) -> Iterator[Question | LeftOut]:
        for item in islice(self._items(files), self.settings.limit):
            yield item if isinstance(item, LeftOut) else self._question(item, shots(item))

    def _examples(self, train: Sequence[Path]) -> Iterator[tuple[str, str]]:
        for item in self._items(train):
            if isinstance(item, Item) and item.gold is not None:
                yield self.wording.example(item, self.labels)

    def _question(self, item: Item, shots: Shots) -> Question:
        prompt, candidates = self.wording.ask(item, self.labels)
        gold, negatives = item.gold, self.settings.negatives
        if negatives is not None and not item.choices and len(candidates) > negatives + 1:
            order = self._some(item, len(candidates), negatives)
            candidates = tuple(candidates[i] for i in order)
            gold = None if gold is None else order.index(gold)
        return Question(item.id, prompt, candidates, gold, source=item.source, shots=shots)

    def _some(self, item: Item, count: int, negatives: int) -> list[int]:
        """Indices of the right label and some wrong ones, shuffled; the same in every process."""
        file = item.source.rsplit("/", 1)[-1]
        maker = random.Random(f"{self.settings.seed}:{self.name}:{file}:{item.id}")
        wrong = [i for i in range(count) if i != item.gold]
        right = [] if item.gold is None else [item.gold]
        chosen = right + maker.sample(wrong, negatives + 1 - len(right))
        maker.shuffle(chosen)
        return chosen

    def _items(self, files: Sequence[Path]) -> Iterator[Item | LeftOut]:
        """Items of all files; one that repeats an id gets its place in the file as well."""
        seen: set[int] = set()
        for file in files:
            for item in self.read(file):
                if isinstance(item, Item):
                    if hash(item.id) in seen:
                        item = replace(item, id=f"{item.id}@{item.source.rsplit('/', 1)[-1]}")
                    seen.add(hash(item.id))
                yield item
