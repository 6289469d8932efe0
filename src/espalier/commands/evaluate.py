"""The command `espalier evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.commands.arguments import (
    AllowPickle,
    AsJson,
    DtypeName,
    RopeScaling,
    TrustRemoteCode,
    check_models,
)
from espalier.errors import UserError
from espalier.screen import json_text, safe


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL [MODEL ...]", help="Model folders or hub ids.")
    ],
    tasks: Annotated[str, typer.Option(help="Exams, groups (clue, fewclue), or YAML files; with commas.")],
    out: Annotated[Path, typer.Option(help="Where results.json and TASK.jsonl go.")],
    data: Annotated[Path, typer.Option(help="The folder that holds the exams' folders.")] = Path(),
    shots: Annotated[str | None, typer.Option(help="Solved examples before a question, such as 0,3.")] = None,
    prompts: Annotated[str, typer.Option(help="Prompt set of the CLUE tasks: plain or pangu.")] = "plain",
    negatives: Annotated[
        int | None, typer.Option(help="Many labels: the right one and so many wrong ones.")
    ] = None,
    answers: Annotated[str, typer.Option(help="Knowledge exams: letter, or text of the options.")] = "letter",
    split: Annotated[str, typer.Option(help="dev (with labels) or test (for submission).")] = "dev",
    limit: Annotated[int | None, typer.Option(help="Only so many questions of each task.")] = None,
    new_shots: Annotated[
        bool, typer.Option("--new-shots", help="Draw examples anew for each question.")
    ] = False,
    overlong: Annotated[
        str, typer.Option(help="Questions longer than the context: trim, leave_out or error.")
    ] = "trim",
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="The longest written answer; at most half of the context.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of written answers; 0: the likeliest.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=1e-9, max=1, help="Likeliest tokens of this mass.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Only so many likeliest tokens; 0: all.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Written answers to each question.")] = 1,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Write the models' answers beside each other.")
    ] = False,
    layout: Annotated[str, typer.Option(help="auto, tree or padded.")] = "auto",
    rope_scaling: RopeScaling = None,
    dtype: DtypeName = "auto",
    template: Annotated[str, typer.Option(help="Ask in a chat template: none, auto, or a name.")] = "none",
    shots_as: Annotated[
        str, typer.Option(help="In a template: examples as turns, or in one message.")
    ] = "turns",
    seed: Annotated[int, typer.Option(help="Of the choice of examples.")] = 42,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    lm_eval_files: Annotated[
        bool, typer.Option("--lm-eval-files", help="Write results in the form of lm_eval's files, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Examine models: CLUE, C-Eval, CMMLU, MMLU, written answers, and tasks of your own."""
    check_models(*models)
    from espalier.exam.evaluate import Asking
    from espalier.exam.several import evaluate_several
    from espalier.exam.task import Drawing
    from espalier.exam.tasks import Settings
    from espalier.models.dtypes import check_dtype
    from espalier.report.page import write_report
    from espalier.report.side_by_side import write_side_by_side

    for name, value, known in (
        ("prompts", prompts, ("plain", "pangu")),
        ("answers", answers, ("letter", "text")),
        ("split", split, ("dev", "test")),
        ("layout", layout, ("auto", "tree", "padded")),
        ("overlong", overlong, ("trim", "leave_out", "error")),
        ("shots-as", shots_as, ("turns", "message")),
    ):
        if value not in known:
            raise UserError(f"--{name} {value}: wanted {' or '.join(known)}.")
    results = evaluate_several(
        models,
        [name.strip() for name in tasks.split(",") if name.strip()],
        out=out,
        settings=Settings(
            data,
            prompts,  # type: ignore[arg-type]
            seed=seed,
            limit=limit,
            negatives=negatives,
            answers=answers,  # type: ignore[arg-type]
            split=split,  # type: ignore[arg-type]
            new_shots=new_shots,
            overlong=overlong,  # type: ignore[arg-type]
            max_new_tokens=max_new_tokens,
            drawing=Drawing(temperature, top_p, top_k, samples, seed),
        ),
        shots=_numbers(shots),
        asking=Asking(
            layout,
            None if template == "none" else template,
            shots_as,  # type: ignore[arg-type]
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            rope_scaling=rope_scaling,
            dtype=check_dtype(dtype),
            lm_eval_files=lm_eval_files,
            quiet=as_json,
        ),
    )
    pages = write_side_by_side(out, results.get("models", {".": results})) if side_by_side else []
    pages.append(write_report(out))
    if as_json:
        print(json_text(results))
    else:
        print(safe(f"Details: {', '.join(map(str, pages))}"))


def _numbers(shots: str | None) -> list[int | None]:
    if shots is None:
        return [None]
    try:
        numbers: list[int | None] = [int(text) for text in shots.split(",")]
    except ValueError:
        numbers = []
    if not numbers or any(number is None or number < 0 for number in numbers):
        raise UserError(f"--shots {shots}: wanted numbers from 0 on, such as 3 or 0,3.")
    return list(dict.fromkeys(numbers))
