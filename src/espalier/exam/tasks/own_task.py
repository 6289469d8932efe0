"""A user's own tasks: a YAML file with jinja fields and a data file become questions.

Example::

    name: capitals
    data: capitals.jsonl  # beside the YAML; columns become fields
    train: capitals_train.jsonl  # solved examples for shots come from here only
    question: "Question: {{ question }}\\nAnswer:"
    candidates: ["{{ a }}", "{{ b }}", "{{ c }}"]  # or the name of a column that holds a list
    gold: "{{ answer }}"  # an index, or the text of a candidate
    shots: 3

or, for answers that are generated::

    question: "{{ question }}"
    generation: {references: "{{ answer }}", max_new_tokens: 16, metric: exact_match, stop: ["\\n"]}
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jinja2.sandbox import SandboxedEnvironment

from espalier.data.read.files import read_rows
from espalier.data.records import BadRecord
from espalier.errors import UserError
from espalier.exam.judges.judge import JUDGES
from espalier.exam.task import Candidate, Drawing, Generation, Question, Shots, Task
from espalier.exam.tasks.shots import draw_shots

_KEYS = (
    "name", "version", "description", "data", "train", "question", "candidates", "gold", "generation",
    "shots", "shot_separator", "answer_prefix", "normalise",
)  # fmt: skip
_DRAWING_KEYS = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "samples": 1, "seed": 42}
_GENERATION_KEYS = ("references", "max_new_tokens", "metric", "stop", *_DRAWING_KEYS)


def load_task(
    path: str | Path, *, shots: int | None = None, limit: int | None = None, seed: int = 42
) -> Task:
    """Read a task file; its data are read whenever the task's questions are.

    Args:
        path: of the YAML.
        shots: examples before each question; None: what the file says.
        limit: only the first so many questions.
        seed: of the choice of examples.

    Raises:
        UserError: an unknown key, a field that the data does not have, a gold answer that is no candidate,
            shots without a train file.
    """
    path = Path(path)
    settings = _read(path)
    maker = _Maker(path, settings)
    count = _count(path, settings.get("shots", 0)) if shots is None else shots
    before = maker.shots(count, seed)
    data = path.parent / str(settings["data"])
    task = Task(
        name=str(settings.get("name", path.stem)),
        read=lambda: islice(maker.questions(data, before), limit),
        shots=count,
        normalise=settings.get("normalise", "sum"),
        kind="write" if "generation" in settings else "choose",
        generation=_generation(path, settings.get("generation")),
        about={"task_file": path.name, "version": settings.get("version", 1), "seed": seed},
        inputs=(path, data, *([path.parent / str(settings["train"])] if count else [])),
    )
    if next(task.read(), None) is None:
        raise UserError(f"{data}: no question in it.")
    return task


def _count(path: Path, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{path}: shots is {value!r}; wanted a whole number, 0 or more.")
    return value


def _generation(path: Path, settings: dict[str, Any] | None) -> Generation | None:
    if settings is None:
        return None
    stop = settings.get("stop", ["\n"])
    return Generation(
        max_new_tokens=int(settings.get("max_new_tokens", 64)),
        stop=(stop,) if isinstance(stop, str) else tuple(str(mark) for mark in stop),
        judge=JUDGES[settings.get("metric", "exact_match")],
        drawing=_drawing(path, settings),
    )


def _drawing(path: Path, settings: dict[str, Any]) -> Drawing:
    given = {key: settings.get(key, default) for key, default in _DRAWING_KEYS.items()}
    for key, value in given.items():
        whole = isinstance(_DRAWING_KEYS[key], int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise UserError(
                f"{path}: generation.{key} is {value!r}; wanted a {'whole ' if whole else ''}number."
            )
    try:
        return Drawing(answers=given.pop("samples"), **given)
    except UserError as error:
        raise UserError(f"{path}: generation: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"{path}: there is no such task file.{hint}")
    try:
        settings = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: wanted a mapping with data, question, and candidates or generation.")
    _check_keys(path, settings, _KEYS, "")
    for needed in ("data", "question"):
        if needed not in settings:
            raise UserError(f"{path}: `{needed}` is missing.")
    name = str(settings.get("name", path.stem))
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise UserError(
            f"{path}: name is {name!r}, and a file will be called by it; use letters, digits and _."
        )
    if ("candidates" in settings) == ("generation" in settings):
        raise UserError(
            f"{path}: give `candidates` (to choose from) or `generation` (to be written), one of them."
        )
    if "candidates" in settings:
        _check_candidates(path, settings)
    if settings.get("normalise", "sum") not in ("sum", "mean"):
        raise UserError(f"{path}: normalise is {settings['normalise']!r}; wanted sum or mean.")
    if settings.get("train") is not None and settings["train"] == settings["data"]:
        raise UserError(
            f"{path}: train and data are the same file, so a question could stand in its own shots."
        )
    generation = settings.get("generation")
    if generation is not None:
        _check_keys(path, generation, _GENERATION_KEYS, "generation.")
        if generation.get("metric", "exact_match") not in JUDGES:
            raise UserError(
                f"{path}: generation.metric is {generation['metric']!r}; known: {', '.join(JUDGES)}."
            )
        tokens = generation.get("max_new_tokens", 64)
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise UserError(
                f"{path}: generation.max_new_tokens is {tokens!r}; wanted a whole number, 1 or more."
            )
    return settings


def _check_candidates(path: Path, settings: dict[str, Any]) -> None:
    if "gold" not in settings:
        raise UserError(f"{path}: `gold` is missing: which candidate is right (an index or its text).")
    given = settings["candidates"]
    if isinstance(given, str):
        return
    if not isinstance(given, list) or len(given) < 2:
        raise UserError(
            f"{path}: candidates is {given!r}; wanted two texts or more, or the name of a column."
        )
    for text in given:
        if not isinstance(text, str):
            raise UserError(f"{path}: the candidate {text!r} is no text to YAML; put it in quotes.")


def _check_keys(path: Path, settings: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(settings, dict):
        raise UserError(f"{path}: {where.rstrip('.')} is {settings!r}; wanted a mapping.")
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{path}: unknown key `{where}{key}`; {hint}")


def _not_null(value: Any) -> Any:
    if value is None:
        raise jinja2.UndefinedError("a field is null")
    return value


class _Maker:
    """Fills the templates of one task file."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path, self._settings = path, settings
        self._jinja = SandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_not_null
        )
        self._jinja.globals.clear()  # a field called `range` is a field
        self._prefix = str(settings.get("answer_prefix", " "))

    def questions(self, data: Path, before: Shots) -> Iterator[Question]:
        seen: set[int] = set()
        for place, row, _ in read_rows(data):
            if isinstance(row, BadRecord):
                raise UserError(f"{row.source}: {row.reason}")
            question = self._question(place, row, before)
            if hash(question.id) in seen:
                raise UserError(
                    f"{place}: the id {question.id!r} was there before; ids name lines of the results."
                )
            seen.add(hash(question.id))
            yield question

    def shots(self, count: int, seed: int) -> Shots:
        """Solved examples, drawn from the train file by the seed."""
        if not count:
            return Shots()
        train = self._settings.get("train")
        if train is None:
            raise UserError(f"{self._path}: {count} shots, but no `train` file to take them from.")
        file = self._path.parent / str(train)
        pool = ((q.prompt, self._answer(q)) for q in self.questions(file, Shots()))
        pairs = draw_shots(pool, count, seed, str(file))
        return Shots("", pairs, str(self._settings.get("shot_separator", "\n\n")))

    def _answer(self, question: Question) -> str:
        if question.gold is not None:
            return question.candidates[question.gold].text
        return self._prefix + question.references[0]

    def _question(self, place: str, row: dict[str, Any], before: Shots) -> Question:
        prompt = self._fill(self._settings["question"], row, place, "question")
        name = str(row.get("id", place.rsplit(":", 1)[-1]))
        generation = self._settings.get("generation")
        if generation is not None:
            references = self._references(generation, row, place)
            return Question(name, prompt, references=references, source=place, shots=before)
        texts, labels = self._candidates(row, place)
        gold = self._gold(row, place, texts)
        candidates = tuple(Candidate(text, 0, label) for text, label in zip(texts, labels, strict=True))
        return Question(name, prompt, candidates, gold, source=place, shots=before)

    def _candidates(self, row: dict[str, Any], place: str) -> tuple[list[str], list[str]]:
        """The texts, and their labels where the same ones answer every question."""
        value = self._settings["candidates"]
        if isinstance(value, list):
            texts = [self._fill(text, row, place, "candidates") for text in value]
            return texts, [
                text.strip() if "{" not in given else "" for given, text in zip(value, texts, strict=True)
            ]
        candidates = self._column(row, value, place, "candidates")
        if (
            not isinstance(candidates, list)
            or len(candidates) < 2
            or any(not isinstance(t, str | int | float) for t in candidates)
        ):
            raise UserError(
                f"{place}: column `{value}` holds {candidates!r}; wanted a list of two candidates or more."
            )
        return [self._prefix + str(text) for text in candidates], [""] * len(candidates)

    def _gold(self, row: dict[str, Any], place: str, candidates: Sequence[str]) -> int:
        value = self._settings["gold"]
        gold = row[value] if value in row else self._fill(str(value), row, place, "gold")
        if isinstance(gold, bool):
            gold = str(gold)
        if isinstance(gold, int) and 0 <= gold < len(candidates):
            return gold  # a number in the data is an index, a text is a candidate's text
        stripped = [text.strip() for text in candidates]
        if str(gold).strip() in stripped:
            return stripped.index(str(gold).strip())
        if str(gold).strip().isdigit() and int(gold) < len(candidates):
            return int(gold)
        raise UserError(
            f"{place}: the gold answer {gold!r} is no candidate ({', '.join(map(repr, stripped))}) and no index."
        )

    def _references(self, generation: dict[str, Any], row: dict[str, Any], place: str) -> tuple[str, ...]:
        value = generation.get("references", "{{ references }}")
        raw = row[value] if value in row else self._fill(str(value), row, place, "generation.references")
        references = tuple(raw) if isinstance(raw, list) else (raw,)
        if not references or not all(
            isinstance(text, str | int | float) and str(text).strip() for text in references
        ):
            raise UserError(f"{place}: the reference answer is {raw!r}; wanted a text or a list of texts.")
        return tuple(str(text) for text in references)

    def _column(self, row: dict[str, Any], name: str, place: str, key: str) -> Any:
        if name not in row:
            raise self._missing(name, row, place, key)
        return row[name]

    def _fill(self, template: str, row: dict[str, Any], place: str, key: str) -> str:
        try:
            return self._jinja.from_string(str(template)).render(row)
        except jinja2.UndefinedError as error:
            nulls = [name for name, value in row.items() if value is None]
            if "null" in str(error) and nulls:
                raise UserError(
                    f"{place}: `{key}` wants a field that is null ({', '.join(nulls)})."
                ) from error
            name = str(error).split("'")[1] if "'" in str(error) else "?"
            raise self._missing(name, row, place, key) from error
        except Exception as error:  # a template may fail in any way: a filter's ValueError, a division by 0
            raise UserError(f"{place}: `{key}` of {self._path.name} cannot be filled ({error}).") from error

    def _missing(self, name: str, row: dict[str, Any], place: str, key: str) -> UserError:
        near = difflib.get_close_matches(name, list(row), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return UserError(
            f"{place}: `{key}` of {self._path.name} wants the field {name!r}, and the data has {', '.join(row)}.{hint}"
        )
