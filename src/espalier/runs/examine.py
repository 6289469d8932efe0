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
from espalier.exam.tasks import Settings


@dataclass(frozen=True, kw_only=True)
class ExamOptions(Options):
    """An exam."""

    model_name_or_path: str | None = option(None, "The model to examine: a folder, a hub id or run:NAME.")
    tasks: list[str] = option([], "Exams: names, groups, or task files.")
    data_dir: str | None = option(None, "Folder of the named exams' folders.")
    shots: int | None = option(None, "Solved examples before each question; null: what the task says.", min=0)
    prompts: Literal["plain", "pangu"] = option("plain", "Prompt set of the CLUE tasks.")
    negatives: int | None = option(None, "Wrong candidates of many-label tasks; null: all labels.", min=1)
    limit: int | None = option(None, "Only so many questions of each task.", min=1)
    layout: Literal["auto", "tree", "padded"] = option("auto", "How questions become rows.")
    template: str | None = option(None, "Ask in a chat template (auto, tokenizer, simple); null: plain text.")
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
        return problems


CLASSES: tuple[type, ...] = (RunOptions, ExamOptions)


def run_exam(raw: Mapping[str, Any], all_classes: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Examine one model; results go to ``OUTPUT_DIR/NAME/``."""
    options = config.build(raw, CLASSES, all_classes=all_classes)
    run, exam = options[RunOptions], options[ExamOptions]
    if exam.model_name_or_path is None:
        raise UserError("`model_name_or_path` is missing: name the model to examine.")
    return evaluate(
        exam.model_name_or_path,
        exam.tasks,
        out=Path(run.output_dir) / (run.name or "exam"),
        settings=Settings(
            Path(exam.data_dir or "."),
            exam.prompts,
            seed=run.seed,
            limit=exam.limit,
            negatives=exam.negatives,
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
