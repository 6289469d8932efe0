"""An exam as a step of a pipeline: a model of the run judged on task files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from espalier import config
from espalier.config.options import Options, RunOptions, option
from espalier.errors import UserError
from espalier.exam.evaluate import Asking, evaluate
from espalier.exam.task import Drawing
from espalier.exam.tasks import Settings
from espalier.models.hub_revision import MAIN, at_revision


@dataclass(frozen=True, kw_only=True)
class ExamOptions(Options):
    """An exam."""

    model_name_or_path: str | None = option(None, "The model to examine: a folder, a hub id or run:NAME.")
    model_revision: str = option("main", "Of the model on the hub: a branch, a tag or a commit.")
    tasks: list[str] = option([], "Exams: names, groups, or task files.")
    data_dir: str | None = option(None, "Folder of the named exams' folders.")
    shots: int | None = option(None, "Solved examples before each question; null: what the task says.", min=0)
    prompts: Literal["plain", "pangu"] = option("plain", "Prompt set of the CLUE tasks.")
    negatives: int | None = option(None, "Wrong candidates of many-label tasks; null: all labels.", min=1)
    limit: int | None = option(None, "Only so many questions of each task.", min=1)
    layout: Literal["auto", "tree", "padded"] = option("auto", "How questions become rows.")
    template: str | None = option(None, "Ask in a chat template (auto, tokenizer, simple); null: plain text.")
    # Named apart from training's keys: a pipeline's shared `temperature` or `overlong` must not change an exam.
    exam_overlong: Literal["trim", "leave_out", "error"] = option(
        "trim",
        "Questions longer than the context lose their beginning, are left out, or end the exam; all is counted and shown.",
    )
    exam_max_new_tokens: int | None = option(
        None, "The longest written answer, at most half of the context; null: what the task says.", min=1
    )
    exam_temperature: float = option(0.0, "Of written answers; 0 takes the likeliest token.", min=0)
    exam_top_p: float = option(
        1.0, "Written answers: only the likeliest tokens of this mass.", above=0, max=1
    )
    exam_top_k: int = option(0, "Written answers: only so many likeliest tokens; 0 is all.", min=0)
    exam_samples: int = option(1, "Written answers to each question; their mean counts.", min=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "The type of the weights; auto: as the model's files, where the device computes in it."
    )
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.")
    allow_pickle: bool = option(False, "Read weights in .bin files, through torch's safe loader.")

    def problems(self) -> list[str]:
        problems = []
        if self.model_name_or_path is None:
            problems.append("`model_name_or_path` is missing: name the model to examine.")
        if not self.tasks:
            problems.append("`tasks` is missing: name one task file or more.")
        try:
            self.drawing(seed=0)
        except UserError as error:
            problems.append(str(error))
        return problems

    def drawing(self, seed: int) -> Drawing:
        """How written answers are drawn."""
        return Drawing(self.exam_temperature, self.exam_top_p, self.exam_top_k, self.exam_samples, seed)


CLASSES: tuple[type, ...] = (RunOptions, ExamOptions)


def run_exam(raw: Mapping[str, Any], all_classes: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Examine one model; results go to ``OUTPUT_DIR/NAME/``."""
    options = config.build(raw, CLASSES, all_classes=all_classes)
    run, exam = options[RunOptions], options[ExamOptions]
    if exam.model_name_or_path is None:
        raise UserError("`model_name_or_path` is missing: name the model to examine.")
    given = exam.model_revision != MAIN
    return evaluate(
        at_revision(exam.model_name_or_path, exam.model_revision) if given else exam.model_name_or_path,
        exam.tasks,
        out=Path(run.output_dir) / (run.name or "exam"),
        settings=Settings(
            Path(exam.data_dir or "."),
            exam.prompts,
            seed=run.seed,
            limit=exam.limit,
            negatives=exam.negatives,
            overlong=exam.exam_overlong,
            max_new_tokens=exam.exam_max_new_tokens,
            drawing=exam.drawing(run.seed),
        ),
        shots=(exam.shots,),
        asking=Asking(
            exam.layout,
            exam.template,
            dtype=exam.dtype,
            trust_remote_code=exam.trust_remote_code,
            allow_pickle=exam.allow_pickle,
        ),
    )
