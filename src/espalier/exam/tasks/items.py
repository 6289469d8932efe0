"""The files of CLUE and FewCLUE -> items: the fields of a question and which class or choice is right.

Both layouts are read: labels as texts or as numbers, ChID with its answers inside or in a second file, C3's nested
lists, CLUEWSC with string labels. Prompts are made elsewhere (`plain`, `pangu`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from espalier.data.read.files import read_rows
from espalier.data.read.json_files import whole_json
from espalier.data.records import BadRecord, LeftOut
from espalier.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a file.

    Attributes:
        fields: what its prompt is made of.
        gold: index among the task's classes, or among its own choices; None where the file has no label.
        choices: where each question has candidates of its own.
    """

    id: str
    fields: Row
    gold: int | None
    source: str
    choices: tuple[str, ...] = ()


Read = Callable[[Path], Iterator[Item | LeftOut]]


@cache
def classes(task: str) -> tuple[tuple[str, str], ...]:
    """(label in the file, its name in Chinese) of TNEWS (15) and IFLYTEK (119), in the order of their labels."""
    table = json.loads((Path(__file__).parent / "labels.json").read_text("utf-8"))
    return tuple(table[task].items())


def rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, row) of a data file.

    Raises:
        UserError: a line that cannot be read, with its file and number.
    """
    for place, row, _ in read_rows(path):
        if isinstance(row, BadRecord):
            raise UserError(f"{row.source}: {row.reason}")
        yield place, row


def wanted(row: Row, place: str, *names: str) -> list[Any]:
    """The named fields.

    Raises:
        UserError: one is not there.
    """
    if not isinstance(row, dict):
        raise UserError(f"{place}: found a {type(row).__name__}, wanted an object with {', '.join(names)}.")
    for name in names:
        if name not in row:
            raise UserError(f"{place}: the field {name!r} is missing; found {', '.join(row) or 'nothing'}.")
    return [row[name] for name in names]


def classified(labels: Sequence[str], *names: str, label: str = "label", leave: str = "") -> Read:
    """A reader of JSON lines with a label of a fixed set; `leave`: a label that means "no agreement"."""

    def read(path: Path) -> Iterator[Item | LeftOut]:
        for place, row in rows(path):
            fields = dict(zip(names, wanted(row, place, *names), strict=True))
            name = str(row.get("id", row.get("idx", place.rsplit(":", 1)[-1])))
            if label not in row:
                yield Item(name, fields, None, place)
                continue
            found_label = str(row[label]).strip()
            if leave and found_label == leave:
                yield LeftOut(place, f"label {leave!r}")
                continue
            if found_label not in labels:
                known = ", ".join(labels[:20])
                raise UserError(f"{place}: the label is {row[label]!r}; wanted one of {known}.")
            yield Item(name, fields, labels.index(found_label), place)

    return read


def read_wsc(path: Path) -> Iterator[Item | LeftOut]:
    """CLUEWSC2020: whether a pronoun (span 2) means a noun (span 1)."""
    for item in classified(("false", "true"), "text", "target")(path):
        assert isinstance(item, Item)
        text, target = item.fields["text"], item.fields["target"]
        span1, span2, start = wanted(target, item.source, "span1_text", "span2_text", "span2_index")
        if text[start : start + len(span2)] != span2:
            raise UserError(
                f"{item.source}: span2_index {start} of the text is {text[start : start + len(span2)]!r}, not {span2!r}."
            )
        fields = {
            "before": text[:start],
            "pronoun": span2,
            "after": text[start + len(span2) :],
            "noun": span1,
        }
        yield Item(item.id, fields, item.gold, item.source)


def read_csldcp(path: Path) -> Iterator[Item | LeftOut]:
    """CSLDCP (FewCLUE): an abstract and its discipline; the classes are all labels of the folder's files."""
    yield from classified(csldcp_labels(path.parent), "content")(path)


@cache
def csldcp_labels(folder: Path) -> tuple[str, ...]:
    """Every label that the labelled files of a CSLDCP folder use, sorted."""
    labels = {
        str(row["label"]) for file in sorted(folder.glob("*.json")) for _, row in rows(file) if "label" in row
    }
    return tuple(sorted(labels))


def read_c3(path: Path) -> Iterator[Item | LeftOut]:
    """C3: [[sentences], [{question, choice, answer}], id] a document; two to four choices.

    A choice that is listed twice is one choice. The kind of text follows from the file: d is dialogue, m is not.
    """
    dialogue = path.name.lower().removeprefix("c3-").startswith("d-")
    for number, document in enumerate(_array(path), start=1):
        place = f"{path}: document {number}"
        if not (isinstance(document, list) and len(document) >= 2 and isinstance(document[1], list)):
            raise UserError(f"{place}: wanted [[sentences], [questions], id].")
        for at, asked in enumerate(document[1]):
            question, given = wanted(asked, place, "question", "choice")
            choices = tuple(dict.fromkeys(given))
            answer = asked.get("answer")
            if answer is not None and answer not in choices:
                raise UserError(
                    f"{place}: the answer {answer!r} is none of the choices {', '.join(choices)}."
                )
            fields = {"sentences": document[0], "question": question, "dialogue": dialogue}
            name = f"{document[2]}-{at}" if len(document) > 2 else str(asked.get("id", f"{number}-{at}"))
            yield Item(name, fields, None if answer is None else choices.index(answer), place, choices)


def _array(path: Path) -> list[Any]:
    array = whole_json(path)
    if not isinstance(array, list):
        raise UserError(f"{path}: wanted one JSON array.")
    return array


_MARK = re.compile(r"#idiom\d*#")


def read_chid(path: Path) -> Iterator[Item | LeftOut]:
    """ChID: idioms that fill blanks; a question a blank.

    CLUE has lists of passages, marks with numbers and the answers in ``SPLIT_answer.json``; FewCLUE one passage,
    one mark and the answer's index beside it. The other blanks of a passage come as None.
    """
    answers = _chid_answers(path)
    for place, row in rows(path):
        content, given = wanted(row, place, "content", "candidates")
        for passage in [content] if isinstance(content, str) else content:
            marks = _MARK.findall(passage)
            if not marks:
                raise UserError(f"{place}: a passage without a mark #idiom...#.")
            texts = _MARK.split(passage)
            for at, mark in enumerate(marks):
                gold = row.get("answer") if mark == "#idiom#" else answers.get(mark)
                if gold is not None and not 0 <= int(gold) < len(given):
                    raise UserError(
                        f"{place}: the answer {gold!r} is no index of the {len(given)} candidates."
                    )
                name = str(row.get("id", place.rsplit(":", 1)[-1])) if mark == "#idiom#" else mark.strip("#")
                fields = {"before": texts[: at + 1], "after": texts[at + 1 :]}
                yield Item(name, fields, None if gold is None else int(gold), place, tuple(given))


def _chid_answers(path: Path) -> dict[str, int]:
    file = path.with_name(f"{path.stem}_answer.json")
    if not file.is_file():
        return {}
    answers = whole_json(file)
    if not isinstance(answers, dict):
        raise UserError(f"{file}: wanted one JSON object, {{mark: index of its idiom}}.")
    return answers
