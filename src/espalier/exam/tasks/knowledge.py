"""C-Eval, CMMLU and MMLU: four options a question, solved examples of each subject from its dev file, in order.

The prompts are the exams' own. Letters: the options stand in the question and the letter is scored. Texts: the
options do not, and the whole text of each is scored by its mean.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from espalier.data.read.lines import open_text, readable
from espalier.errors import UserError
from espalier.exam.task import Candidate, Question, Shots, Task
from espalier.exam.tasks.settings import Settings, folder_of

LETTERS = "ABCD"


@dataclass(frozen=True)
class KnowledgeExam:
    """An exam of four options a question, and how it words them.

    Attributes:
        dev, evaluation, test: file of a subject's examples, of its questions, and of questions without answers.
        intro: stands once before the examples; takes the subject's name.
        header: the columns of question, options and answer; None where the files have no header.
        ask: before a question.
        cue: after the options; the letter follows.
        space: before an answer.
    """

    dev: str
    evaluation: str
    test: str
    intro: str
    header: tuple[str, ...] | None
    ask: str
    cue: str
    space: str

    def task(self, name: str, settings: Settings) -> Task:
        """The exam with the subjects whose files are there: C-Eval has 52, CMMLU 67, MMLU 57.

        Raises:
            UserError: no file of questions, a row that is none, or fewer examples than shots.
        """
        folder = folder_of(settings.data, (name,))
        if (folder / "data").is_dir():
            folder = folder / "data"
        known: dict[str, str] = subjects(name)["subjects"]
        pattern = self.evaluation if settings.split == "dev" else self.test
        files = {key: folder / pattern.format(key) for key in known}
        here = {key: path for key, path in files.items() if path.is_file()}
        if not here:
            raise UserError(f"{folder}: no file {pattern.format(next(iter(known)))} or of any other subject.")
        shots = {key: _shots(self, folder, key, known[key], settings) for key in here}
        letters = settings.answers == "letter"
        return Task(
            name=name,
            read=lambda: (q for key in here for q in _questions(self, key, here[key], shots[key], settings)),
            shots=settings.shots,
            normalise="sum" if letters else "mean",
            parts=subjects(name)["parts"],
            about={
                "prompts": "the exam's own v1",
                "answers": settings.answers,
                "subjects": len(here),
                "missing_subjects": [key for key in known if key not in here],
            },
            inputs=tuple(here.values()),
            submission=None if self.test == self.evaluation or settings.split == "dev" else submission,
        )


EXAMS: dict[str, KnowledgeExam] = {
    "ceval": KnowledgeExam(
        "dev/{}_dev.csv", "val/{}_val.csv", "test/{}_test.csv",
        "以下是中国关于{}考试的单项选择题，请选出其中的正确答案。\n\n",
        ("question", *LETTERS, "answer"), "", "答案：", "",
    ),
    "cmmlu": KnowledgeExam(
        "dev/{}.csv", "test/{}.csv", "test/{}.csv",
        "以下是关于{}的单项选择题，请直接给出正确答案的选项。\n\n",
        ("Question", *LETTERS, "Answer"), "题目：", "答案是：", "",
    ),
    "mmlu": KnowledgeExam(
        "dev/{}_dev.csv", "test/{}_test.csv", "test/{}_test.csv",
        "The following are multiple choice questions (with answers) about {}.\n\n",
        None, "", "Answer:", " ",
    ),
}  # fmt: skip


@cache
def subjects(name: str) -> dict[str, Any]:
    """Names of an exam's subjects and which of them are averaged together."""
    table: dict[str, dict[str, Any]] = json.loads(
        (Path(__file__).parent / "subjects.json").read_text("utf-8")
    )
    return table[name]


def _questions(
    exam: KnowledgeExam, subject: str, path: Path, shots: Shots, settings: Settings
) -> Iterator[Question]:
    labels = LETTERS if settings.answers == "letter" else [""] * 4
    for row in islice(_rows(exam, path), settings.limit):
        prompt, texts = _asked(exam, row, settings)
        candidates = tuple(Candidate(text, 0, label) for text, label in zip(texts, labels, strict=True))
        gold = LETTERS.index(row.answer) if row.answer else None
        yield Question(f"{subject}-{row.id}", prompt, candidates, gold, (), row.source, subject, shots)


def submission(answers: Iterable[tuple[Question, int]]) -> str:
    """C-Eval's file for its test set: {subject: {id: letter}}; ids are whole numbers, as the exam's own files have them.

    A table that has been through another program may write them as 0.0.
    """
    letters: dict[str, dict[str, str]] = {}
    for question, prediction in answers:
        name = question.id.removeprefix(f"{question.group}-")
        letters.setdefault(question.group, {})[re.sub(r"\.0+$", "", name.strip())] = LETTERS[prediction]
    return json.dumps(letters, indent=4) + "\n"


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    question: str
    options: tuple[str, ...]
    answer: str
    source: str


def _rows(exam: KnowledgeExam, path: Path) -> Iterator[_Row]:
    """The questions of one csv; every cell is a text ("None" and "NA" are answers, too)."""
    try:
        with readable(path), open_text(path) as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, []) if exam.header else ["", "", "", "", "", ""]
            line = reader.line_num + 1 if exam.header else 1
            for number, cells in enumerate(reader):
                place, line = f"{path}:{line}", reader.line_num + 1
                if cells:
                    yield _row(exam, header, cells, place, number)
    except csv.Error as error:
        raise UserError(f"{path}:{line}: broken csv ({error}); check the quotes of this row.") from error


def _row(exam: KnowledgeExam, header: list[str], cells: list[str], place: str, number: int) -> _Row:
    if len(cells) != len(header):
        raise UserError(
            f"{place}: {len(cells)} cells; wanted {len(header)}, with commas and line breaks in quotes."
        )
    if exam.header is None:
        question, *options, answer = cells
        name = str(number)
    else:
        cell = dict(zip(header, cells, strict=True))
        missing = [column for column in exam.header[:5] if column not in cell]
        if missing:
            raise UserError(f"{place}: no column {', '.join(missing)}; found {', '.join(header)}.")
        question, *options = (cell[column] for column in exam.header[:5])
        answer = cell.get(exam.header[5], "")
        name = cell.get("id") or cell.get("") or str(number)
    answer = answer.strip()
    if answer and answer not in LETTERS:
        raise UserError(f"{place}: the answer is {answer!r}; wanted A, B, C or D.")
    return _Row(name, question.strip(), tuple(option.strip() for option in options), answer, place)


def _shots(exam: KnowledgeExam, folder: Path, key: str, title: str, settings: Settings) -> Shots:
    intro = exam.intro.format(title)
    if not settings.shots:
        return Shots(intro)
    path = folder / exam.dev.format(key)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file, and {settings.shots} shots come from it.")
    rows = [row for row in _rows(exam, path) if row.answer][: settings.shots]
    if len(rows) < settings.shots:
        raise UserError(f"{path}: {len(rows)} solved examples; {settings.shots} shots need as many.")
    pairs = []
    for row in rows:
        prompt, texts = _asked(exam, row, settings)
        pairs.append((prompt, texts[LETTERS.index(row.answer)]))
    return Shots(intro, tuple(pairs))


def _asked(exam: KnowledgeExam, row: _Row, settings: Settings) -> tuple[str, list[str]]:
    lines = [exam.ask + row.question]
    if settings.answers == "letter":
        lines += [f"{letter}. {option}" for letter, option in zip(LETTERS, row.options, strict=True)]
        return "\n".join([*lines, exam.cue]), [exam.space + letter for letter in LETTERS]
    return "\n".join([*lines, exam.cue]), [exam.space + option for option in row.options]
