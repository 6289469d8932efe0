"""Exams whose answers are written: CMRC 2018, DRCD, GSM8K, mathematics, LCSTS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from espalier.checking.mathematics import boxed, judge_expression, judge_number
from espalier.data.read.json_files import whole_json
from espalier.data.read.lines import read_lines
from espalier.errors import UserError
from espalier.exam.judges.cmrc import judge_cmrc
from espalier.exam.judges.judge import judge_rouge
from espalier.exam.task import Generation, Question, Shots, Task
from espalier.exam.tasks.items import rows, wanted
from espalier.exam.tasks.settings import FileNames, Settings, folder_of, question_files, train_files
from espalier.exam.tasks.shots import draw_shots


@dataclass(frozen=True)
class WrittenExam:
    """An exam whose answers are written.

    Attributes:
        folders: names of its folder.
        files, train: of its questions and solved examples; the first that is there.
        read: the questions of such files, each with one reference or more.
        generation: how answers are written and judged.
        shot: what stands after a solved example's prompt.
    """

    folders: tuple[str, ...]
    files: FileNames
    train: FileNames
    read: Callable[[list[Path]], Iterator[Question]]
    generation: Generation
    shot: Callable[[Question], str] = lambda question: question.references[0]

    def task(self, name: str, settings: Settings) -> Task:
        """The exam as a task.

        Raises:
            UserError: its folder or file is missing, or a line cannot be read.
            NoShots: shots are wanted and there is no file for them.
        """
        folder = folder_of(settings.data, self.folders)
        files = question_files(folder, self.files)
        train = train_files(name, folder, self.train) if settings.shots else []
        shots = Shots()
        if train:
            pool = ((solved.prompt, self.shot(solved)) for solved in self.read(train) if solved.references)
            shots = Shots("", draw_shots(pool, settings.shots, settings.seed, str(train[0])))

        def read() -> Iterator[Question]:
            for question in islice(self.read(files), settings.limit):
                yield replace(question, shots=shots)

        return Task(
            name=name,
            read=read,
            shots=settings.shots,
            kind="write",
            generation=self.generation,
            about={"prompts": "v1", "files": [p.name for p in files], "train": [p.name for p in train]},
            inputs=(*files, *train),
        )


def read_cmrc(paths: list[Path]) -> Iterator[Question]:
    """CMRC 2018 and DRCD: SQuAD's layout, or CMRC's original list. Answers are texts; their offsets are not used."""
    for path in paths:
        for context, name, question, answers in _passages(path):
            prompt = f"阅读文章：{context}\n问：{question}\n答："
            yield Question(name, prompt, references=tuple(dict.fromkeys(answers)), source=f"{path}:{name}")


def _passages(path: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    whole, place = whole_json(path), str(path)
    if isinstance(whole, list):
        for passage in whole:
            context, questions = wanted(passage, place, "context_text", "qas")
            for asked in questions:
                name, question, answers = wanted(asked, place, "query_id", "query_text", "answers")
                yield context, str(name), question, list(answers)
        return
    if not isinstance(whole, dict) or "data" not in whole:
        raise UserError(f"{path}: wanted {{version, data: [...]}} or a list of passages.")
    for article in whole["data"]:
        for passage in wanted(article, place, "paragraphs")[0]:
            context, questions = wanted(passage, place, "context", "qas")
            for asked in questions:
                name, question = wanted(asked, f"{place}: {context[:20]!r}", "id", "question")
                texts = [wanted(answer, f"{place}: {name}", "text")[0] for answer in asked.get("answers", [])]
                yield context, str(name), question, texts


def read_gsm8k(paths: list[Path]) -> Iterator[Question]:
    """GSM8K: question and worked answer, whose last line is ``#### NUMBER``."""
    for place, row in _all_rows(paths):
        question, answer = wanted(row, place, "question", "answer")
        name = place.rsplit(":", 1)[-1]
        yield Question(name, f"Question: {question}\nAnswer:", references=(answer,), source=place)


def _gsm8k_shot(question: Question) -> str:
    """The worked answer without the calculator's notes."""
    import re

    return " " + re.sub(r"<<[^<>]*>>", "", question.references[0])


def read_math(paths: list[Path]) -> Iterator[Question]:
    """Problems with a ``ground_truth``, or with a ``solution`` that has a boxed answer (also one JSON object of them)."""
    for place, row in _all_rows(paths):
        if (
            "problem" not in row
            and "prompt" not in row
            and row
            and all(isinstance(v, dict) for v in row.values())
        ):
            for name, problem in row.items():
                yield _problem(problem, f"{place}: {name}", name)
        else:
            yield _problem(row, place, str(row.get("id", place.rsplit(":", 1)[-1])))


def _problem(row: dict[str, Any], place: str, name: str) -> Question:
    asked = row.get("problem") or row.get("prompt")
    truths = (row.get("ground_truth"), row.get("answer"), boxed(str(row.get("solution", ""))))
    references = tuple(str(truth) for truth in truths if truth not in (None, ""))[:1]
    known = {"ground_truth", "answer", "solution"} & row.keys()
    if not isinstance(asked, str) or not known:
        raise UserError(
            f"{place}: wanted `prompt` or `problem`, and `ground_truth`, `answer` or a boxed `solution`."
        )
    prompt = f"Problem: {asked}\nReason step by step, and put the final answer within \\boxed{{}}.\nSolution:"
    return Question(name, prompt, references=references, source=place, group=str(row.get("tag", "")))


def read_lcsts(paths: list[Path]) -> Iterator[Question]:
    """LCSTS: two parallel files, news items and their headlines."""
    texts, titles = paths
    for number, (text, title) in enumerate(zip_longest(read_lines(texts), read_lines(titles)), start=1):
        if text is None or title is None:
            raise UserError(f"{texts} and {titles}: line {number} is in one of them only; fetch them again.")
        prompt = f"新闻：{text[1].strip()}\n标题："
        yield Question(str(number), prompt, references=(title[1].strip(),), source=text[0])


def _all_rows(paths: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in paths:
        yield from rows(path)


_READING = Generation(32, ("\n",), judge_cmrc)
_MATHS = Generation(512, ("Problem:",), judge_expression)

EXAMS: dict[str, WrittenExam] = {
    "cmrc2018": WrittenExam(
        ("cmrc2018", "cmrc2018_public", "cmrc"), ("dev.json", "cmrc2018_dev.json"),
        ("train.json", "cmrc2018_train.json", "trial.json"), read_cmrc, _READING,
    ),
    "drcd": WrittenExam(("drcd",), ("dev.json", "DRCD_dev.json"), ("train.json", "DRCD_training.json"), read_cmrc, _READING),
    "gsm8k": WrittenExam(
        ("gsm8k",), ("test.jsonl",), ("train.jsonl",), read_gsm8k,
        Generation(256, ("Question:",), judge_number), _gsm8k_shot,
    ),
    "math_bench": WrittenExam(
        ("math_bench",), ("math_benchmarks_0710.jsonl", "test.jsonl"), ("train.jsonl",), read_math, _MATHS
    ),
    "lcsts": WrittenExam(
        ("lcsts",), (("test.src.txt", "test.tgt.txt"),), (("train.src.txt", "train.tgt.txt"),), read_lcsts,
        Generation(40, ("\n",), judge_rouge),
    ),
}  # fmt: skip
