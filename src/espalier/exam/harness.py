"""Tasks of the library lm_eval as exams of ours: ``lm_eval:NAME`` runs on trees and gives rows like any other."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

from espalier.engine import files
from espalier.errors import UserError
from espalier.models.forward import TreeModel


def check_installed() -> None:
    """Raises `UserError` where lm_eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm_eval:NAME needs lm_eval. Install it: pip install 'espalier-llm[lm-eval]'.")


def examine_harness(
    model: TreeModel,
    tokenizer: Any,
    name: str,
    out: Path,
    *,
    shots: int | None,
    suffix: str,
    limit: int | None,
    data: Path,
    seed: int,
    in_template: bool,
    shots_as_turns: bool,
) -> dict[str, dict[str, Any]]:
    """Run a task or group of lm_eval; ``out/lm_eval_TASK.jsonl`` gets a line a sample.

    Args:
        name: of lm_eval, or of a task file below `data` or beside.
        shots: solved examples; None: what the task says.
        suffix: of the rows' and files' names.
        limit: samples of each task.
        data: searched for task files, too.
        in_template: ask in the tokenizer's chat template.

    Returns:
        A row of results.json for each task; time and tokens of a group are shared out by its samples.

    Raises:
        UserError: lm_eval knows no such task, or cannot get its data.
    """
    from lm_eval import __version__, simple_evaluate
    from lm_eval.tasks import TaskManager

    from espalier.exam.lm_eval import EspalierLM

    lm = EspalierLM(model, tokenizer)
    own = str(data) if data != Path() else None
    # The user's own tasks first: reading all of lm_eval's takes seconds.
    manager = TaskManager(include_path=own, include_defaults=False)
    if name not in _known(manager):
        manager = TaskManager(include_path=own)
    if name not in _known(manager) and not Path(name).is_file():
        raise UserError(
            f"lm_eval:{name}: lm_eval {__version__} has no such task; `lm_eval ls tasks` lists them. "
            "A task file of your own is found below --data."
        )
    start = time.perf_counter()
    try:
        found: Any = simple_evaluate(
            model=lm,
            tasks=[name],
            num_fewshot=shots,
            limit=limit,
            task_manager=manager,
            bootstrap_iters=1000,
            fewshot_random_seed=seed,
            apply_chat_template=in_template,
            fewshot_as_multiturn=in_template and shots_as_turns,
            verbosity="ERROR",
        )
    except (OSError, ConnectionError) as error:
        raise UserError(f"lm_eval:{name}: its data cannot be read ({str(error).splitlines()[0]}).") from error
    seconds = time.perf_counter() - start
    total = sum(counts["effective"] for counts in found["n-samples"].values())
    rows = {}
    for task, counts in found["n-samples"].items():
        share = counts["effective"] / total
        rows[f"lm_eval_{task}{suffix}"] = {
            "n": counts["effective"],
            "shots": found["n-shot"].get(task, shots or 0),
            "metrics": _metrics(found["results"][task]),
            "normalise": None,
            "seconds": round(seconds * share, 3),
            "tokens_computed": round(lm.cost.computed * share),
            "tokens_unshared": round(lm.cost.unshared * share),
            "about": {"lm_eval": __version__, "version": found["versions"].get(task), "run": name},
        }
        lines = [
            json.dumps(_line(sample), ensure_ascii=False, default=str) for sample in found["samples"][task]
        ]
        files.write_text(out / f"lm_eval_{task}{suffix}.jsonl", "\n".join(lines) + "\n")
    return rows


def _known(manager: Any) -> set[str]:
    return {*manager.all_tasks, *manager.all_groups, *manager.all_tags}


def _metrics(numbers: dict[str, Any]) -> dict[str, float]:
    """``acc,none`` and ``acc_stderr,none`` -> acc and acc_stderr; a filter other than "none" stays in the name."""
    found = {}
    for key, value in numbers.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = numbers.get(f"{name}_stderr,{filtered}")
        short = name if filtered == "none" else f"{name}_{filtered}"
        found[short] = float(value)
        found[f"{short}_stderr"] = float(error) if isinstance(error, int | float) else 0.0
    return found


def _line(sample: dict[str, Any]) -> dict[str, Any]:
    kept = {"id": sample["doc_id"], "target": sample["target"]}
    kept |= {"arguments": sample["arguments"], "resps": sample["resps"]}
    return kept | {"metrics": {name: sample[name] for name in sample.get("metrics", ()) if name in sample}}
