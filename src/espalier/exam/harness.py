"""Tasks of the library lm_eval as exams of ours: ``lm_eval:NAME`` runs on trees and gives rows like any other."""

from __future__ import annotations

import importlib.util
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.engine import files
from espalier.errors import UserError
from espalier.models.forward import TreeModel


def check_installed() -> None:
    """Raises `UserError` where lm_eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm_eval:NAME needs lm_eval. Install it: pip install 'espalier-llm[lm-eval]'.")


@dataclass(frozen=True)
class HarnessTask:
    """A task or group of lm_eval, and how it is asked.

    Attributes:
        name: of lm_eval, or of a task file below `data` or beside.
        shots: solved examples; None: what the task says.
        suffix: of the rows' and files' names.
        limit: samples of each task.
        data: searched for task files, too.
        seed: of the choice of solved examples.
        in_template: ask in the tokenizer's chat template.
        shots_as_turns: with a template, solved examples are turns of their own.
    """

    name: str
    shots: int | None
    suffix: str
    limit: int | None
    data: Path
    seed: int
    in_template: bool
    shots_as_turns: bool


def examine_harness(
    model: TreeModel, tokenizer: Any, task: HarnessTask, out: Path
) -> dict[str, dict[str, Any]]:
    """Run a task or group of lm_eval; ``out/lm_eval_TASK.jsonl`` gets a line a sample.

    Returns:
        A row of results.json for each task; time and tokens of a group are shared out by its samples.

    Raises:
        UserError: lm_eval knows no such task, or cannot get its data.
    """
    from lm_eval import __version__

    from espalier.exam.lm_eval import EspalierLM

    lm = EspalierLM(model, tokenizer)
    manager = _manager(task)
    start = time.perf_counter()
    results = _evaluated(lm, task, manager)
    seconds = time.perf_counter() - start
    total = sum(counts["effective"] for counts in results["n-samples"].values())
    rows = {}
    for name, counts in results["n-samples"].items():
        share = counts["effective"] / total
        rows[f"lm_eval_{name}{task.suffix}"] = {
            "n": counts["effective"],
            "shots": results["n-shot"].get(name, task.shots or 0),
            "metrics": _metrics(results["results"][name]),
            "normalise": None,
            "seconds": round(seconds * share, 3),
            "tokens_computed": round(lm.cost.computed * share),
            "tokens_unshared": round(lm.cost.unshared * share),
            "about": {"lm_eval": __version__, "version": results["versions"].get(name), "run": task.name},
        }
        lines = [
            json.dumps(_line(sample), ensure_ascii=False, default=str) for sample in results["samples"][name]
        ]
        files.write_text(out / f"lm_eval_{name}{task.suffix}.jsonl", "\n".join(lines) + "\n")
    return rows


def _manager(task: HarnessTask) -> Any:
    """lm_eval's list of tasks; the user's own first, for reading all of lm_eval's takes seconds."""
    from lm_eval import __version__
    from lm_eval.tasks import TaskManager

    own = str(task.data) if task.data != Path() else None
    manager = TaskManager(include_path=own, include_defaults=False)
    if task.name not in _known(manager):
        manager = TaskManager(include_path=own)
    if task.name not in _known(manager) and not Path(task.name).is_file():
        raise UserError(
            f"lm_eval:{task.name}: lm_eval {__version__} has no such task; `lm_eval ls tasks` lists them. "
            "A task file of your own is found below --data."
        )
    return manager


def _evaluated(lm: Any, task: HarnessTask, manager: Any) -> Any:
    """What lm_eval's own evaluation gives."""
    from lm_eval import simple_evaluate

    try:
        return simple_evaluate(
            model=lm,
            tasks=[task.name],
            num_fewshot=task.shots,
            limit=task.limit,
            task_manager=manager,
            bootstrap_iters=1000,
            fewshot_random_seed=task.seed,
            apply_chat_template=task.in_template,
            fewshot_as_multiturn=task.in_template and task.shots_as_turns,
            verbosity="ERROR",
        )
    except (OSError, ConnectionError) as error:
        raise UserError(
            f"lm_eval:{task.name}: its data cannot be read ({str(error).splitlines()[0]})."
        ) from error


def _known(manager: Any) -> set[str]:
    return {*manager.all_tasks, *manager.all_groups, *manager.all_tags}


def _metrics(numbers: dict[str, Any]) -> dict[str, float | None]:
    """``acc,none`` and ``acc_stderr,none`` -> acc and acc_stderr; a filter other than "none" stays in the name."""
    metrics: dict[str, float | None] = {}
    for key, value in numbers.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = numbers.get(f"{name}_stderr,{filtered}")
        short = name if filtered == "none" else f"{name}_{filtered}"
        metrics[short] = float(value)
        metrics[f"{short}_stderr"] = float(error) if isinstance(error, int | float) else None
    return metrics


def _line(sample: dict[str, Any]) -> dict[str, Any]:
    kept = {"id": sample["doc_id"], "target": sample["target"]}
    kept |= {"arguments": sample["arguments"], "resps": sample["resps"]}
    return kept | {"metrics": {name: sample[name] for name in sample.get("metrics", ()) if name in sample}}
