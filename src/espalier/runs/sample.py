"""Answers of a model as records to train on: sampled, scored, and written as chats, pairs or rankings.

A step of a pipeline, or alone (`stage: sample`). Rejection sampling is this stage and SFT on its best answers (Dong et
al. 2023, RAFT); online DPO is this stage and DPO on its pairs, again and again, each time from the model of the last.
The scores are those of PPO and GRPO: the same reward models and rules, read at the same place.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate.utils import set_seed

from espalier import config
from espalier.config.option_set import OptionSet
from espalier.config.options import (
    COMMON,
    DataOptions,
    DtypeOptions,
    EngineOptions,
    ModelOptions,
    Options,
    RunOptions,
    TokenizedOptions,
    option,
)
from espalier.data.records import ASSISTANT, Message, Record
from espalier.disk.checksums import fault, sums_of
from espalier.disk.reading import object_or_nothing
from espalier.disk.writing import write_json, write_whole
from espalier.engine import strategy
from espalier.engine.launch import processes
from espalier.errors import UserError
from espalier.rollout.experience import AnswerGroup
from espalier.runs.checks import check_startable, with_models_found
from espalier.runs.earlier import finished, ways_out
from espalier.runs.provenance import made_from
from espalier.runs.running import Start
from espalier.runs.train import decided, kept_in, setup_of
from espalier.stages.parts import Live
from espalier.stages.rollout_options import RolloutOptions
from espalier.stages.rollouts import Roller, read_asks, rewards_of

SAMPLE = "sample"
RECORDS, SUMMARY = "records.jsonl", "sampled.json"
AT_ONCE = 64
"""Prompts between two lines about how far it is, where `rollout_prompts` says nothing."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(Options):
    """Answers as records (the keys of training do nothing here)."""

    sample_as: Literal["preference", "ranking", "sft"] = option(
        "preference",
        "What is written of a prompt: the best and the worst answer, all of them with scores, or the best.",
    )
    min_score: float | None = option(
        None, "The best answer must score at least this; else nothing is written of the prompt."
    )


CLASSES: tuple[type, ...] = (*COMMON, RolloutOptions, SampleOptions)
_COUNTS = (
    RunOptions,
    ModelOptions,
    DtypeOptions,
    DataOptions,
    TokenizedOptions,
    EngineOptions,
    RolloutOptions,
    SampleOptions,
)


@dataclass
class Sampled:
    """What was sampled and what became of it.

    Attributes:
        reward_failures: answers without a reward, which on_reward_failure: skip leaves out.
        best_of: k -> sum over prompts of the best score of their first k answers.
        left_out: cause -> prompts of which nothing was written.
    """

    prompts: int = 0
    answers: int = 0
    unfinished: int = 0
    written: int = 0
    reward_failures: int = 0
    best_of: Counter[int] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        means = {str(k): total / max(self.prompts, 1) for k, total in sorted(self.best_of.items())}
        counts = {
            key: getattr(self, key)
            for key in ("prompts", "answers", "unfinished", "written", "reward_failures")
        }
        return {**counts, "left_out": dict(self.left_out), "best_of": means}


def run_sample(raw: Mapping[str, Any], all_classes: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Sample, score and write ``OUTPUT_DIR/NAME/records.jsonl``; ``sampled.json`` beside it says what was done.

    The same options and inputs again are skipped, as with a training stage.

    Raises:
        UserError: anything wrong with the options, the data or the reward; the file is there and was made with other
            options, or has been changed since.
    """
    notes = list(config.canonical(raw)[1])
    options = with_models_found(config.build(raw, CLASSES, all_classes=all_classes), notes.append)
    check_startable(SAMPLE, options)
    options = decided(options, None)
    precision = options[EngineOptions].precision
    assert precision != "auto"
    run = options[RunOptions]
    folder = Path(run.output_dir) / (run.name or SAMPLE)
    read = OptionSet(tuple(group if type(group) in _COUNTS else type(group)() for group in options))
    made = made_from(read, processes=processes(), known=kept_in(options) / "files.json")
    summary = object_or_nothing(folder / SUMMARY)
    accelerator = strategy.make_accelerator(precision)
    start = Start(SAMPLE, options, folder, made, accelerator, notes)
    if summary and run.resume is not False:
        harm = fault(folder, summary.get("files", {}))
        if harm is not None:
            raise UserError(f"{folder}: {harm}, and would be written over. {ways_out(folder)}")
        decision = finished(folder, made, summary)
        if decision.done is not None:
            start.console.say(f"{start.name}: done already ({folder}), skipped", "dim")
            return decision.done
        notes += decision.notes
    for note in notes:
        start.console.say(note, "yellow")
    set_seed(run.seed)
    return _sampled(start)


def _sampled(start: Start) -> dict[str, Any]:
    accelerator, rolling, form = start.accelerator, start.option(RolloutOptions), start.option(SampleOptions)
    setup = setup_of(start, "prompt")
    rewards, name = rewards_of(setup), start.option(ModelOptions).model_name_or_path
    if name is None:
        raise UserError("`model_name_or_path` is missing: name the model to sample from.")
    asks, _ = read_asks(setup, rewards)
    policy = setup.load_frozen(name).eval().requires_grad_(False)
    roller = Roller(setup, policy, (asks, asks[:0]), policy, rolling.group_size or 8, rewards)  # type: ignore[arg-type]
    live, tally = Live(policy, accelerator), Sampled()

    def lines() -> Iterator[str]:
        size = rolling.rollout_prompts or AT_ONCE
        by_source = {record.source: record for record in setup.all_of(setup.records("prompt")[0])}
        for number, first in enumerate(range(0, len(asks), size)):
            places = list(range(first, min(first + size, len(asks))))
            answered = roller.answered(live, places, roller.seed(number))
            totals = roller.totals(live, answered, roller.components(live, answered))
            for group, found in zip(answered, totals, strict=True):
                row = record_of(by_source[group.ask.source], group, found.tolist(), form, tally)
                if row is not None:
                    yield json.dumps(row, ensure_ascii=False)
            start.console.say(f"{start.name}: {places[-1] + 1} of {len(asks)} prompts", "dim")

    path = start.folder / RECORDS
    if start.is_main:
        start.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: _write_lines(temporary, lines()))
    else:
        for _ in lines():
            pass
    if not tally.written:
        raise UserError(
            f"no record was written of {tally.prompts} prompts: "
            f"{'; '.join(f'{n} {cause}' for cause, n in tally.left_out.items())}. Look at the reward, raise group_size or "
            "max_new_tokens, or lower min_score."
        )
    summary = {"stage": SAMPLE, "status": "done", "made_from": start.made_from.as_json(), **tally.as_json()}
    if start.is_main:
        write_json(start.folder / SUMMARY, {**summary, "files": sums_of(start.folder, [RECORDS])})
    best = ", ".join(f"{score:.4g} (best of {k})" for k, score in summary["best_of"].items())
    start.console.say(f"{start.name}: {tally.written} records in {path}; scores: {best}")
    accelerator.wait_for_everyone()
    return summary


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(line + "\n")


def record_of(
    record: Record, group: AnswerGroup, scores: Sequence[float], form: SampleOptions, tally: Sampled
) -> dict[str, Any] | None:
    """What is written of a prompt and its scored answers; None, and why in the tally, where that is nothing.

    An answer that was cut at max_new_tokens is never written: it would be taught to end there.
    """
    tally.answers += len(scores)
    tally.unfinished += group.ended.count(False)
    known = [score for score in scores if not math.isnan(score)]
    tally.reward_failures += len(scores) - len(known)
    tally.prompts += 1
    k = 1
    while k < 2 * len(known):
        tally.best_of[min(k, len(known))] += max(known[:k])  # type: ignore[assignment]
        k *= 2
    whole = [
        (s, text)
        for s, text, ended in zip(scores, group.texts, group.ended, strict=True)
        if ended and text.strip() and not math.isnan(s)
    ]
    ranked = sorted(dict.fromkeys(whole), key=lambda pair: -pair[0])
    turns = [message.as_turn() for message in record.prompt]
    shared = {} if record.tools is None else {"tools": record.tools}

    def said(text: str) -> dict[str, Any]:
        return Message(ASSISTANT, record.prefix + text).as_turn()

    cause = None
    if not known:
        cause = "whose answers have no reward"
    elif not ranked:
        cause = "without a whole answer"
    elif form.min_score is not None and ranked[0][0] < form.min_score:
        cause = "without an answer that scores min_score"
    elif form.sample_as != "sft" and ranked[0][0] == ranked[-1][0]:
        cause = "whose answers all score the same"
    if cause is not None:
        tally.left_out[cause] += 1
        return None
    tally.written += 1
    (best, top), (worst, bottom) = ranked[0], ranked[-1]
    if form.sample_as == "sft":
        return {"messages": [*turns, said(top)], "score": best, **shared}
    if form.sample_as == "ranking":
        answers = [{"answer": record.prefix + text, "score": score} for score, text in ranked]
        return {"prompt": turns, "answers": answers, **shared}
    margin = {"margin": best - worst}
    return {"prompt": turns, "chosen": [said(top)], "rejected": [said(bottom)], **margin, **shared}
