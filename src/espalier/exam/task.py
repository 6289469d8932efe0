"""Tasks: a YAML file with jinja fields and a data file become questions.

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
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jinja2
import yaml
from jinja2.sandbox import SandboxedEnvironment

from espalier.data.files import read_rows
from espalier.data.records import BadRecord
from espalier.errors import UserError

METRICS = ("exact_match", "contains")
_KEYS = (
    "name", "version", "description", "data", "train", "question", "candidates", "gold", "generation",
    "shots", "shot_separator", "answer_prefix", "normalise",
)  # fmt: skip
_GENERATION_KEYS = ("references", "max_new_tokens", "metric", "stop")


@dataclass(frozen=True)
class Question:
    """A question and what may answer it.

    Example: ``Question("7", "2 + 3 =", (" 5", " 6"), 0, (), "sums.jsonl:7")``

    Attributes:
        id: unique within its task.
        prompt: the text before an answer, without few-shot examples.
        candidates: texts that continue the prompt; () where the answer is generated.
        gold: index of the right candidate; None where it is not known, or for generation.
        references: right answers of a generated one.
        source: "FILE:LINE".
    """

    id: str
    prompt: str
    candidates: tuple[str, ...]
    gold: int | None
    references: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Task:
    """Questions and how they are judged.

    Attributes:
        normalise: whether a candidate's score is the sum of its logprobs or their mean.
        metric: "accuracy" for candidates; else how a generated answer is compared.
        prefix: the solved examples before every question of this run, the same for all.
        shots: how many they are.
        max_new_tokens, stop: of a generated answer.
    """

    name: str
    questions: tuple[Question, ...]
    normalise: Literal["sum", "mean"] = "sum"
    metric: str = "accuracy"
    prefix: str = ""
    shots: int = 0
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ("\n",)
    settings: dict[str, Any] = field(default_factory=dict)


def load_task(
    path: str | Path, *, shots: int | None = None, limit: int | None = None, seed: int = 42
) -> Task:
    """Read a task file and its data.

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
    questions = maker.questions(path.parent / str(settings["data"]), limit)
    count = int(settings.get("shots", 0)) if shots is None else shots
    prefix = maker.examples(count, seed) if count else ""
    generation = settings.get("generation") or {}
    return Task(
        name=str(settings.get("name", path.stem)),
        questions=tuple(questions),
        normalise=settings.get("normalise", "sum"),
        metric=generation.get("metric", "exact_match") if generation else "accuracy",
        prefix=prefix,
        shots=count,
        max_new_tokens=int(generation.get("max_new_tokens", 64)),
        stop=_listed(generation.get("stop", ["\n"])),
        settings=settings,
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"{path}: there is no such task file.{hint}")
    try:
        settings = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: wanted a mapping with data, question, and candidates or generation.")
    _check_keys(path, settings, _KEYS, "")
    for needed in ("data", "question"):
        if needed not in settings:
            raise UserError(f"{path}: `{needed}` is missing.")
    if ("candidates" in settings) == ("generation" in settings):
        raise UserError(
            f"{path}: give `candidates` (to choose from) or `generation` (to be written), one of them."
        )
    if "candidates" in settings and "gold" not in settings:
        raise UserError(f"{path}: `gold` is missing: which candidate is right (an index or its text).")
    if settings.get("normalise", "sum") not in ("sum", "mean"):
        raise UserError(f"{path}: normalise is {settings['normalise']!r}; wanted sum or mean.")
    generation = settings.get("generation")
    if generation is not None:
        _check_keys(path, generation, _GENERATION_KEYS, "generation.")
        if generation.get("metric", "exact_match") not in METRICS:
            raise UserError(
                f"{path}: generation.metric is {generation['metric']!r}; known: {', '.join(METRICS)}."
            )
    return settings


def _listed(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(str(mark) for mark in value)


def _check_keys(path: Path, settings: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(settings, dict):
        raise UserError(f"{path}: {where.rstrip('.')} is {settings!r}; wanted a mapping.")
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{path}: unknown key `{where}{key}`; {hint}")


class _Maker:
    """Fills the templates of one task file."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path, self._settings = path, settings
        self._jinja = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)

    def questions(self, data: Path, limit: int | None) -> list[Question]:
        found: list[Question] = []
        for place, row, _ in read_rows(data):
            if limit is not None and len(found) == limit:
                break
            if isinstance(row, BadRecord):
                raise UserError(f"{row.source}: {row.reason}")
            found.append(self._question(place, row))
        if not found:
            raise UserError(f"{data}: no question in it.")
        return found

    def examples(self, count: int, seed: int) -> str:
        """Solved examples, drawn from the train file by the seed, as one text that ends in a separator."""
        train = self._settings.get("train")
        if train is None:
            raise UserError(f"{self._path}: {count} shots, but no `train` file to take them from.")
        pool = [
            q
            for q in self.questions(self._path.parent / str(train), None)
            if q.gold is not None or q.references
        ]
        if len(pool) < count:
            raise UserError(f"{train}: {len(pool)} solved examples; {count} shots need as many.")
        separator = str(self._settings.get("shot_separator", "\n\n"))
        chosen = random.Random(seed).sample(pool, count)
        return "".join(q.prompt + self._answer(q) + separator for q in chosen)

    def _answer(self, question: Question) -> str:
        if question.gold is not None:
            return question.candidates[question.gold]
        return str(self._settings.get("answer_prefix", " ")) + question.references[0]

    def _question(self, place: str, row: dict[str, Any]) -> Question:
        prompt = self._fill(self._settings["question"], row, place, "question")
        name = str(row.get("id", place.rsplit(":", 1)[-1]))
        generation = self._settings.get("generation")
        if generation is not None:
            return Question(name, prompt, (), None, self._references(generation, row, place), place)
        candidates = self._candidates(row, place)
        gold = self._gold(row, place, candidates)
        return Question(name, prompt, candidates, gold, (), place)

    def _candidates(self, row: dict[str, Any], place: str) -> tuple[str, ...]:
        value = self._settings["candidates"]
        if isinstance(value, str):
            prefix = str(self._settings.get("answer_prefix", " "))
            held = self._column(row, value, place, "candidates")
            if not isinstance(held, list) or not held:
                raise UserError(f"{place}: column `{value}` holds {held!r}; wanted a list of candidates.")
            return tuple(prefix + str(text) for text in held)
        return tuple(self._fill(text, row, place, "candidates") for text in value)

    def _gold(self, row: dict[str, Any], place: str, candidates: tuple[str, ...]) -> int:
        value = self._settings["gold"]
        said = row[value] if value in row else self._fill(str(value), row, place, "gold")
        if isinstance(said, bool):
            said = str(said)
        if isinstance(said, int) and 0 <= said < len(candidates):
            return said  # a number in the data is an index, a text is a candidate's text
        stripped = [text.strip() for text in candidates]
        if str(said).strip() in stripped:
            return stripped.index(str(said).strip())
        if str(said).strip().isdigit() and int(said) < len(candidates):
            return int(said)
        raise UserError(
            f"{place}: the gold answer {said!r} is no candidate ({', '.join(map(repr, stripped))}) and no index."
        )

    def _references(self, generation: dict[str, Any], row: dict[str, Any], place: str) -> tuple[str, ...]:
        value = generation.get("references", "{{ references }}")
        held = row[value] if value in row else self._fill(str(value), row, place, "generation.references")
        found = tuple(str(text) for text in held) if isinstance(held, list) else (str(held),)
        if not found or not all(found):
            raise UserError(f"{place}: no reference answer.")
        return found

    def _column(self, row: dict[str, Any], name: str, place: str, key: str) -> Any:
        if name not in row:
            raise self._missing(name, row, place, key)
        return row[name]

    def _fill(self, template: str, row: dict[str, Any], place: str, key: str) -> str:
        try:
            return self._jinja.from_string(str(template)).render(row)
        except jinja2.UndefinedError as error:
            raise self._missing(
                str(error).split("'")[1] if "'" in str(error) else "?", row, place, key
            ) from error
        except jinja2.TemplateError as error:
            raise UserError(f"{self._path}: `{key}` is no valid template ({error}).") from error

    def _missing(self, name: str, row: dict[str, Any], place: str, key: str) -> UserError:
        near = difflib.get_close_matches(name, list(row), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return UserError(
            f"{place}: `{key}` of {self._path.name} wants the field {name!r}, and the data has {', '.join(row)}.{hint}"
        )
