"""Sets that are almost records already: instructions, preferences, DeepSpeed-Chat's local files.

Beside other files, a file whose name says test, eval, dev or valid is the dev part as it is, and what train has of
its prompts is left out; otherwise the parts follow from the prompts as for every corpus.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from espalier.corpora.made import DEV, TRAIN, CorpusRecord, Division, Omission, Outcomes, digest, key_of
from espalier.corpora.prepare.reading import Row, as_line, data_files, lacking, rows, text_of
from espalier.corpora.prepare.shape import left_out, row_of
from espalier.data.read.messages import shown
from espalier.data.read.rows import parse_row
from espalier.data.records import BadRecord, LeftOut

_HELD = re.compile(r"(^|[^a-z])(test|eval|dev|valid|validation)([^a-z]|$)", re.IGNORECASE)
_TURN = re.compile(r"(?:^|\s)(Human|Assistant):")


def alpaca(where: Path, division: Division) -> Outcomes:
    """BELLE and alpaca: instruction, input, output (and history, system), as chats."""
    yield from _parsed(where, lambda place, row: parse_row(row, place, "chat", format="alpaca"))


def instruction_wild(where: Path, division: Division) -> Outcomes:
    """InstructionWild: chats where there is an output, prompts where there is only an instruction."""

    def parse(place: str, row: Row) -> Any:
        answered = text_of(row, "output").strip()
        return parse_row(row, place, "chat" if answered else "prompt", format="alpaca")

    yield from _parsed(where, parse)


def hc3(where: Path, division: Division) -> Outcomes:
    """HC3-Chinese: a question and the first of its human answers, as a chat."""
    yield from _asked(where, "question", "human_answers")


def zhihu(where: Path, division: Division) -> Outcomes:
    """Zhihu-KOL: INSTRUCTION and RESPONSE, as a chat."""
    yield from _asked(where, "INSTRUCTION", "RESPONSE")


def hh(where: Path, division: Division) -> Outcomes:
    """hh-rlhf: chosen and rejected dialogues, parted where they first differ, as preferences."""
    yield from _parsed(where, lambda place, row: parse_row(row, place, "preference"))


def prompted_pairs(where: Path, division: Division) -> Outcomes:
    """rm-static and DeepSpeed-Chat's local files: prompt, chosen, rejected, as preferences.

    A prompt in the form "Human: … Assistant:" is read as turns; the answers lose the space that they begin with.
    A row without a rejected answer becomes a chat.
    """

    def parse(place: str, row: Row) -> Any:
        problem = lacking(place, row, "prompt", "chosen")
        if problem:
            return problem
        turns = [{"role": "user", "content": row["prompt"]}]
        if isinstance(row["prompt"], str) and row["prompt"].rstrip().endswith("Assistant:"):
            turns = _turns(row["prompt"])
        chosen, rejected = (text_of(row, name).strip() for name in ("chosen", "rejected"))
        whole: Row = {"prompt": turns, "chosen": chosen, "rejected": rejected}
        if rejected:
            return parse_row(whole, place, "preference")
        return parse_row({"messages": [*turns, {"role": "assistant", "content": chosen}]}, place, "chat")

    yield from _parsed(where, parse)


def summaries(where: Path, division: Division) -> Outcomes:
    """summarize_from_feedback, comparisons: a post (or an article) and two summaries, one of them chosen.

    The prompt is laid out as its authors did (Stiennon et al. 2020, appendix B.2).
    """

    def parse(place: str, row: Row) -> Any:
        problem = lacking(place, row, "info", "summaries", "choice")
        if problem:
            return problem
        info, both, choice = row["info"], row["summaries"], row["choice"]
        fits = isinstance(info, dict) and isinstance(both, list) and len(both) == 2 and choice in (0, 1)
        if not fits or not all(isinstance(one, dict) for one in both):
            reason = f"wanted `info`, two `summaries` with texts, and a `choice` of 0 or 1 (which is better), found {shown(choice)}"
            return Omission(place, "no comparison", as_line(row), reason)
        named = (
            ("SUBREDDIT: r/", "subreddit"),
            ("TITLE: ", "title"),
            ("POST: ", "post"),
            ("ARTICLE: ", "article"),
        )
        parts = [mark + text for mark, name in named if (text := text_of(info, name).strip())]
        texts = [text_of(one, "text").strip() for one in both]
        return _pair(
            place, "\n\n".join([*parts, "TL;DR:"]) if parts else "", texts, [choice == 0, choice == 1]
        )

    yield from _parsed(where, parse)


ListReader = Callable[[list[Any]], Row | None]


def webgpt(where: Path, division: Division) -> Outcomes:
    """webgpt_comparisons: a question and two answers with scores that sum to 0; the pages they quote are not used.

    A pair with equal scores is left out (Nakano et al. 2021). Read are the columns of the hub's copy, and OpenAI's own file,
    where a line is the list of the two answers, each with its question and score.
    """

    def parse(place: str, row: Row) -> Any:
        names = ("question", "answer_0", "answer_1", "score_0", "score_1")
        problem = lacking(place, row, *names)
        if problem:
            return problem
        question, *answers = (row[name] for name in names)
        asked = text_of(question, "full_text") if isinstance(question, dict) else question
        return _pair(place, asked, answers[:2], answers[2:])

    yield from _parsed(where, parse, _both_answers)


def _both_answers(value: list[Any]) -> Row | None:
    """A line of OpenAI's own file with the hub's columns; None where it is something else."""
    if len(value) != 2 or not all(
        isinstance(one, dict) and "answer" in one and "score" in one for one in value
    ):
        return None
    if value[0].get("question") != value[1].get("question"):
        return None
    row = {f"{name}_{at}": one[name] for at, one in enumerate(value) for name in ("answer", "score")}
    return {"question": value[0].get("question"), **row}


def _pair(place: str, prompt: Any, texts: Sequence[Any], scores: Sequence[Any]) -> Any:
    """Two answers as a preference, by their scores."""
    if not all(isinstance(score, (int, float)) and math.isfinite(score) for score in scores):
        return BadRecord(
            place, "broken score", f"the scores are {shown(list(scores))}, wanted two finite numbers"
        )
    if scores[0] == scores[1]:
        return LeftOut(place, "both answers score the same")
    better, worse = texts if scores[0] > scores[1] else texts[::-1]
    return parse_row({"prompt": prompt, "chosen": better, "rejected": worse}, place, "preference")


def _turns(text: str) -> list[dict[str, str]]:
    """ "Human: a Assistant: b Human: c Assistant:" as its turns, the last of them the human's."""
    parts = _TURN.split(text)
    names = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": names[speaker], "content": words.strip()}
        for speaker, words in zip(parts[1::2], parts[2::2], strict=True)
    ]
    before = parts[0].strip()
    if before:
        turns.insert(0, {"role": "system", "content": before})
    return turns[:-1]


def _asked(where: Path, question: str, answer: str) -> Outcomes:
    def parse(place: str, row: Row) -> Any:
        problem = lacking(place, row, question, answer)
        reply = row.get(answer)
        if isinstance(reply, list):
            reply = next((text for text in reply if isinstance(text, str) and text.strip()), "")
        return problem or parse_row(
            {"instruction": row[question], "output": reply}, place, "chat", format="alpaca"
        )

    yield from _parsed(where, parse)


def _parsed(where: Path, parse: Callable[[str, Row], Any], of_list: ListReader | None = None) -> Outcomes:
    """Every row through `parse`; held-out files first, so that train can leave out what they hold.

    Args:
        of_list: the row of a line that is a list; None of one that is none, which is left out.
    """
    files = data_files(where)
    held_files = [path for path in files if _HELD.search(path.name.split(".")[0])]
    if len(held_files) == len(files):
        held_files = []
    dev_prompts: set[int] = set()
    for path in held_files:
        for thing in _made(path, parse, of_list):
            if isinstance(thing, CorpusRecord):
                dev_prompts.add(digest(thing.key))
                thing = replace(thing, part=DEV)
            yield thing
    for path in files:
        for thing in [] if path in held_files else _made(path, parse, of_list):
            if isinstance(thing, CorpusRecord) and held_files:
                if digest(thing.key) in dev_prompts:
                    yield Omission(thing.source, "its prompt stands in the held-out file", thing.key)
                    continue
                thing = replace(thing, part=TRAIN)
            yield thing


def _made(path: Path, parse: Callable[[str, Row], Any], of_list: ListReader | None) -> Outcomes:
    for entry in rows(path):
        if isinstance(entry, Omission):
            listed = json.loads(entry.text) if of_list and entry.cause == "not an object" else None
            row = of_list(listed) if of_list and isinstance(listed, list) else None
            if row is None:
                yield entry
                continue
            entry = entry.source, row
        place, row = entry
        outcome = parse(place, row)
        if isinstance(outcome, Omission):
            yield outcome
        elif isinstance(outcome, (BadRecord, LeftOut)):
            yield left_out(outcome, row)
        else:
            yield CorpusRecord(row_of(outcome), key=key_of(outcome), source=place, group=path.name)
